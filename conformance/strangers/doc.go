// Package strangers has no code, but tests against what nobody here wrote.
//
// Other people's broker clients, unmodified, log in to "brokerauth emulate", call and refresh: tastytrade's own
// @tastytrade/api, @sudowealth/schwab-api, and authlib as schwab-py and tda-api use it. Where one of them could not, the
// emulator would not be what it says. Conversely a Session logs in to oidc-provider, a server that ends a login when an
// old refresh token comes back.
//
// They need Node.js with "npm ci" in this folder, and Debian's python3-authlib and python3-requests; a test skips where
// its part is missing, but for CI.
package strangers
