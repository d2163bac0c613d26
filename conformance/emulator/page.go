package emulator

import (
	"cmp"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
)

// The form goes back to its own address, query included.
const pageText = `<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Emulated {{.Broker}}</title>
<style>
body { font-family: sans-serif; max-width: 34em; margin: 4em auto; padding: 0 1em }
button { font-size: 1em; margin-right: 1em }
</style>
<h1>This {{.Broker}} is emulated</h1>
<p>No money, no account, no password: nothing here is real.</p>
<p>The app <b>{{.Client}}</b> asks for access. You will be sent to <code>{{.Redirect}}</code>.</p>
<form method="post">
<button name="button" value="approve">Approve</button>
<button name="button" value="deny">Deny</button>
</form>
</html>
`

// page is the login page: a form, and where its buttons lead.
func (b *Broker) page(r *http.Request) *answer {
	q := r.URL.Query()
	want := asked{q.Get("client_id"), q.Get("redirect_uri"), q.Get("scope")}
	if refused := b.rules.refusePage(b, want); refused != nil {
		return refused
	}
	want.client, want.scope = b.rules.clientID(want.client), cmp.Or(want.scope, b.rules.scope)
	challenge, method := "", ""
	if b.rules.pkce {
		challenge, method = q.Get("code_challenge"), q.Get("code_challenge_method")
	}
	// RFC 6749 section 4.1.2.1 and RFC 7636 section 4.4.1.
	refuse := func(code, description string) *answer {
		return sendBack(want.redirect, "error="+code+"&error_description="+url.QueryEscape(description), q)
	}
	if t := q.Get("response_type"); t != "" && t != "code" {
		return refuse("unsupported_response_type", "response_type must be code")
	}
	if challenge != "" || method != "" {
		if sum, err := base64.RawURLEncoding.DecodeString(challenge); err != nil || len(sum) != 32 || method != "S256" {
			return refuse("invalid_request", "code_challenge_method must be S256")
		}
	}
	button := ""
	if b.config.AutoApprove {
		button = "approve"
	}
	if r.Method == http.MethodPost {
		button = r.PostFormValue("button")
	}
	switch button {
	case "approve":
		return sendBack(want.redirect, b.rules.callback(b.consent(want, challenge)), q)
	case "deny":
		return refuse("access_denied", "the user declined")
	}
	a := newAnswer(http.StatusOK, "text/html; charset=utf-8", "")
	a.header.Set("Cache-Control", "no-store")
	a.header.Set("Referrer-Policy", "no-referrer")
	a.header.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	page := template.Must(template.New("page").Parse(pageText))
	page.Execute(&a.body, struct{ Broker, Client, Redirect string }{b.rules.name, want.client, want.redirect}) // cannot fail
	return a
}

// sendBack redirects the user to the app with query, and the state of q if there is one.
func sendBack(redirect, query string, q url.Values) *answer {
	if state := q.Get("state"); state != "" {
		query += "&state=" + url.QueryEscape(state)
	}
	base, old, has := strings.Cut(redirect, "?")
	if strings.Count(base, "/") == 2 {
		base += "/" // as a browser shows it
	}
	if has && old != "" {
		query = old + "&" + query
	}
	return redirectAnswer(base + "?" + query)
}
