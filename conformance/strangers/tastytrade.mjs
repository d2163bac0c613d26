// @tastytrade/api, unmodified, at an emulated tastytrade.
import assert from 'node:assert/strict'
import TastytradeClient from '@tastytrade/api'
import { until } from './person.mjs'

const { BASE, APP_SECRET, GRANT } = process.env
const open = (clientSecret, refreshToken) =>
  new TastytradeClient({
    ...TastytradeClient.ProdConfig,
    baseUrl: BASE,
    clientSecret,
    refreshToken,
    oauthScopes: ['read', 'trade'],
    targetApiVersion: '20250813',
  })

async function refused(promise, status, code, description) {
  try {
    await promise
  } catch (err) {
    assert.equal(err.response?.status, status, err.message)
    assert.equal(err.response.data.error_code, code)
    assert.equal(err.response.data.error_description, description)
    return
  }
  assert.fail(`not refused: want ${status} ${code}`)
}

const client = open(APP_SECRET, GRANT)
const [{ account }] = await client.accountsAndCustomersService.getCustomerAccounts()
assert.ok(account['account-number'])
const first = client.accessToken.token
assert.ok(first)
const quotes = await client.accountsAndCustomersService.getApiQuoteToken()
assert.ok(quotes.token)
assert.match(quotes['dxlink-url'], /^wss:/)

// The client renews 30 seconds before the end, which is two seconds after the start.
assert.equal(client.accessToken.expiresIn, 32)
while (!client.accessToken.isExpired) await until(50)
await client.accountsAndCustomersService.getCustomerAccounts()
assert.ok(client.accessToken.token && client.accessToken.token !== first, 'a refresh brings another access token')

await refused(open('not-the-secret', GRANT).accountsAndCustomersService.getCustomerAccounts(), 401, 'invalid_client', 'Client secret mismatch')
await refused(open(APP_SECRET, 'nobody-issued-this').accountsAndCustomersService.getCustomerAccounts(), 400, 'invalid_grant', 'Invalid JWT')
