package main

import (
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// What brokers have been seen to answer, and the exit code that tells a program what to do about it.
func TestBrokersErrors(t *testing.T) {
	t.Parallel()
	const (
		settings, person, later = 2, 3, 4

		schwabDead = `{"error":"unsupported_token_type","error_description":"400 Bad Request: \"{\"error_description\":\"Exception while ` +
			`authenticating refresh token [tokenDigest=abc, Exception=Failed refresh token authentication [tokenDigest=abc]]\",` +
			`\"error\":\"refresh_token_authentication_error\"}\""}`
		schwabCode = `{"error":"unsupported_token_type","error_description":"400 Bad Request: \"{\"error_description\":\"Bad authorization ` +
			`code: DETAIL\",\"error\":\"invalid_request\"}\""}`
		denied = `<HTML><HEAD><TITLE>Access Denied</TITLE></HEAD><BODY><H1>Access Denied</H1>You don't have permission to access ` +
			`"http&#58;&#47;&#47;api&#46;schwabapi&#46;com&#47;v1&#47;oauth&#47;token" on this server.</BODY></HTML>`
		nginx = `<html><head><title>401 Authorization Required</title></head><body><center><h1>401 Authorization Required</h1></center>` +
			`<hr><center>nginx</center></body></html>`
	)
	late := strings.ReplaceAll(schwabCode, "DETAIL", "AuthorizationCode has expired,expiration=1728437138768,now=1728437166999")
	malformed := strings.ReplaceAll(schwabCode, "DETAIL", "Invalid authorization code header: C0.b2F1d")
	tests := map[string][]struct {
		status int
		body   string
		code   int
		want   string // what it tells
	}{
		"schwab": {
			{400, schwabDead, person, "log in"},
			{400, strings.ReplaceAll(schwabDead, `\":\"`, `\" : \"`), person, "log in"},
			{400, `{"error":"invalid_client","error_description":"refresh token invalid"}`, person, "log in"},
			{400, `{"error":"invalid_client","error_description":"refresh_token_invalid"}`, person, "log in"},
			{400, `{"error":"invalid_grant"}`, person, "log in"},
			{401, `{"error":"invalid_client","error_description":"Unauthorized"}`, settings, "secret"},
			{400, `Bad Request`, later, ""},
			{401, `{"error":"assertion_rejected"}`, settings, "Ready For Use"},
			{401, `Session rejected`, settings, "Ready For Use"},
			{403, denied, later, "Access Denied"},
			{500, `<html><body><h1>Whitelabel Error Page</h1>There was an unexpected error (type=Internal Server Error, status=500).</body></html>`, later, ""},
			{500, `We are unable to complete your request. Please contact customer service`, later, ""},
			{400, `{"errors":[{"status": 500,"title":"Internal Server Error"}]}`, later, ""},
			{413, `{"fault":{"faultstring":"Body buffer overflow","detail":{"errorcode":"protocol.http.TooBigBody"}}}`, later, ""},
			{429, ``, later, ""},
			{503, ``, later, ""},
		},
		"schwab login": {
			{400, late, person, "30 seconds"},
			{400, malformed, person, ""},
		},
		"tdameritrade": {
			{400, `{"error" : "invalid_grant"}`, person, "log in"},
			{401, `{"error" : "invalid_grant"}`, person, "log in"},
			{400, `{"error" : "invalid_request"}`, settings, "callback URL"},
			{403, `{"error" : "You don't have permission to access this resource."}`, settings, "app"},
			{429, "\n\n    " + `{"error":"Individual App's transactions per seconds restriction reached. Please contact us with further questions"}`, later, "minute"},
			{500, `{"error":"InvalidApiKey"}`, later, "client id"},
			{503, ``, later, ""},
		},
		"tdameritrade login": {
			{400, `{"error" : "invalid_grant"}`, person, "callback URL"},
		},
		"tastytrade": {
			{400, `{"error_code":"invalid_grant","error_description":"Invalid JWT"}`, settings, "Create Grant"},
			{400, `{"error_code":"invalid_grant","error_description":"Grant revoked"}`, settings, "regenerated"},
			{400, `{"error":"invalid_grant","error_description":"Grant revoked"}`, settings, "regenerated"},
			{400, `{"error_code":"invalid_client","error_description":"Client secret mismatch"}`, settings, "ends every grant"},
			{401, `{"error_code":"invalid_client","error_description":"Client secret mismatch"}`, settings, "ends every grant"},
			{400, `{"error_code":"invalid_request","error_description":"User is not a TastyTrade customer"}`, settings, "opened an account"},
			{403, `{"error":{"code":"not_permitted","message":"User not permitted access"}}`, settings, "two-factor"},
			{401, `{"error":{"code":"invalid_credentials","message":"Invalid login"}}`, settings, "user name and password"},
			{401, `{"error":{"code":"unconfirmed_user","message":"Confirm"}}`, settings, "e-mail"},
			{400, `{"error":{"code":"quote_streamer.customer_not_found_error","message":"You must be a customer to access a quote stream."}}`, settings, "opened an account"},
			{401, nginx, later, "User-Agent"},
			{406, `{"error":{"code":"not_acceptable","message":"Accept-Version"}}`, later, "Accept-Version"},
			{422, `{"error":{"code":"validation_error","message":"no","errors":[{"domain":"x","reason":"y"}]}}`, later, "malformed"},
			{429, `<html><body>Too Many Requests</body></html>`, later, "often"},
			{502, `<html><body>Bad Gateway</body></html>`, later, ""},
			{500, `{"error":{"code":"internal_error","message":"support id 1"}}`, later, ""},
		},
	}
	for what, cases := range tests {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			broker, login, _ := strings.Cut(what, " ")
			p := newPlace(t, emulator.Config{}).at(broker, emulator.Config{})
			args := []string{"refresh", broker}
			if login != "" {
				args = []string{"login", broker, "--flow", "browser"}
			} else if broker != "tastytrade" {
				p.must(0, "login", broker)
			}
			for _, c := range cases {
				p.broker.Inject(emulator.Fault{Status: c.status, Body: c.body})
				r := p.run(args...)
				if r.code != c.code || !strings.Contains(r.errors, c.want) {
					t.Errorf("HTTP %d %s: exit code %d, want %d, and %q in:\n%s", c.status, c.body, r.code, c.code, c.want, r.errors)
				}
			}
		})
	}
}
