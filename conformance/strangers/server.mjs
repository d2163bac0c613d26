// npm's oidc-provider as a strict broker: client_secret_basic, PKCE, one-time refresh tokens with reuse detection, and
// access tokens of a few seconds. It says on standard output where it is, then each thing that happens, in lines of JSON.
import { createServer } from 'node:http'
import Provider, { errors } from 'oidc-provider'

const { CLIENT_ID, CLIENT_SECRET, REDIRECT_URL, ACCESS_SECONDS } = process.env
const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')

const server = createServer()
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`
  const provider = new Provider(issuer, {
    clients: [{
      client_id: CLIENT_ID,
      client_secret: CLIENT_SECRET,
      redirect_uris: [REDIRECT_URL],
      application_type: 'web',
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      token_endpoint_auth_method: 'client_secret_basic',
    }],
    clientAuthMethods: ['client_secret_basic'],
    pkce: { required: () => true },
    rotateRefreshToken: true,
    issueRefreshToken: () => true,
    scopes: ['openid', 'offline_access', 'trade'],
    ttl: { AccessToken: Number(ACCESS_SECONDS), AuthorizationCode: 30, RefreshToken: 3600, Grant: 3600, Interaction: 600, Session: 3600, IdToken: 3600 },
    cookies: { keys: ['of this run'] },
    features: { devInteractions: { enabled: true }, userinfo: { enabled: true } },
  })
  const grant = (ctx) => ctx.oidc.params?.grant_type
  provider.on('grant.success', (ctx) => say({ event: 'granted', grant: grant(ctx), at: Date.now() }))
  provider.on('grant.error', (ctx, err) => say({ event: 'refused', grant: grant(ctx), why: err instanceof errors.OIDCProviderError ? err.error : String(err) }))
  provider.on('grant.revoked', () => say({ event: 'revoked' }))
  provider.on('server_error', (ctx, err) => say({ event: 'broken', why: String(err) }))
  server.on('request', provider.callback())
  say({ event: 'listening', issuer })
})
// Whoever started it has gone.
process.stdin.resume().on('end', () => process.exit(0))
