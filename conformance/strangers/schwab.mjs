// @sudowealth/schwab-api, unmodified, at an emulated Schwab.
import assert from 'node:assert/strict'
import { createApiClient, createSchwabAuth } from '@sudowealth/schwab-api'
import { approve } from './person.mjs'

const { BASE, APP_KEY, APP_SECRET } = process.env
const app = (secret, kept) =>
  createSchwabAuth({
    oauthConfig: {
      clientId: APP_KEY,
      clientSecret: secret,
      redirectUri: 'https://127.0.0.1:8182/callback',
      issuerBaseUrl: BASE + '/v1',
      maxRetryAttempts: 1,
      save: async (tokens) => { kept.tokens = tokens },
      load: async () => kept.tokens ?? null,
    },
  })

// What the client makes of a refusal holds the broker's own body.
async function refused(promise, status, says) {
  try {
    await promise
  } catch (err) {
    assert.equal(err.status, status, err.message)
    assert.match(JSON.stringify(err.body), says)
    return
  }
  assert.fail(`not refused: want ${status} ${says}`)
}

const kept = {}
const auth = app(APP_SECRET, kept)
const { authUrl } = await auth.getAuthorizationUrl()
const back = await approve(authUrl)
const [code, state] = [back.searchParams.get('code'), back.searchParams.get('state')]
assert.equal(back.origin + back.pathname, 'https://127.0.0.1:8182/callback')
assert.match(code, /@$/)
assert.ok(back.searchParams.get('session'))

const first = await auth.exchangeCode(code, state)
assert.ok(first.accessToken && first.refreshToken)
assert.ok(Math.abs(first.expiresAt - Date.now() - 1800_000) < 60_000, 'half an hour')
await refused(auth.exchangeCode(code, state), 400, /Bad authorization code/)

const client = createApiClient({ auth, config: { baseUrl: BASE }, middleware: { retry: { maxAttempts: 0 } } })
const [account] = await client.trader.accounts.getAccountNumbers()
assert.ok(account.accountNumber && account.hashValue)
const { streamerInfo } = await client.trader.userPreference.getUserPreference()
assert.match(streamerInfo[0].streamerSocketUrl, /^wss:/)

const second = await auth.refresh(first.refreshToken, { force: true })
assert.ok(second.accessToken !== first.accessToken, 'a refresh brings another access token')
assert.ok(second.refreshToken === first.refreshToken, 'and the same refresh token')
await client.trader.accounts.getAccountNumbers()
assert.ok(kept.tokens.accessToken === second.accessToken)

await refused(app('not-the-secret', {}).refresh(first.refreshToken, { force: true }), 401, /"error":"invalid_client"/)
await refused(app(APP_SECRET, {}).refresh('nobody-issued-this', { force: true }), 400, /refresh_token_authentication_error/)

// A verifier that is not the challenge's.
const next = await auth.getAuthorizationUrl()
const later = await approve(next.authUrl)
const forged = Buffer.from(JSON.stringify({ pkce_code_verifier: 'a'.repeat(43) })).toString('base64url')
await refused(auth.exchangeCode(later.searchParams.get('code'), forged), 400, /Bad authorization code/)

// A new login ends the one before it.
await auth.exchangeCode(later.searchParams.get('code'), later.searchParams.get('state'))
await refused(app(APP_SECRET, {}).refresh(first.refreshToken, { force: true }), 400, /refresh_token_authentication_error/)
