package authcode

import (
	"cmp"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"github.com/brokerauth/brokerauth"
)

// maxCallback is far more than any broker's callback needs.
const maxCallback = 16 << 10

// code takes the code out of what the user came back with.
func (c *Config) code(login *brokerauth.Login, callback string) (string, error) {
	wrong := func(what, hint string) error {
		return &brokerauth.Error{Provider: c.Info.Name, Op: "login", Err: errors.New(what), Hint: hint}
	}
	const whole = "copy the whole address from the browser's address bar after logging in"
	if login == nil || login.RedirectURL == "" || c.PKCE && login.Secret == "" {
		return "", wrong("this login was not begun here", "begin a new one")
	}
	s := strings.TrimSpace(callback)
	switch {
	case s == "":
		return "", wrong("the address is empty", whole)
	case len(s) > maxCallback:
		return "", wrong("the address is too long to come from the broker", whole)
	case strings.ContainsFunc(s, unicode.IsSpace):
		return "", wrong("the address is broken up by white space", "paste it as one line")
	}

	query, isQuery := strings.CutPrefix(s, "?")
	if u, ok := address(s, login.RedirectURL); ok {
		redirect, err := url.Parse(login.RedirectURL)
		switch {
		case u == nil || err != nil:
			return "", wrong("the address cannot be read", whole)
		case isLoginPage(u, c.AuthURL):
			return "", wrong("that is the address of the login page", "open it, log in, and paste the address that the browser shows after that")
		case !samePlace(u, redirect):
			want, _, _ := strings.Cut(login.RedirectURL, "?")
			return "", wrong(fmt.Sprintf("the address leads to %q, not to the callback %q", scrub(place(u), nil), want), whole)
		}
		query, isQuery = u.RawQuery, true
	} else if before, _, found := strings.Cut(s, "&"); found && !strings.Contains(before, "=") {
		query, isQuery = "code="+s, true // cut out of the address behind "code=", with what follows it
	} else if hasParam(query) {
		isQuery = true
	}

	if !isQuery {
		if login.Secret == "" && c.ClientSecret == "" {
			// Nothing would show that the code belongs to this login: anybody's could be slipped in.
			return "", wrong("a bare code is not enough", whole)
		}
		code, err := url.PathUnescape(s) // not QueryUnescape: a code may hold "+"
		if err != nil || !visible(code) || strings.Contains(code, "://") || c.BareCode != nil && !c.BareCode(code) {
			return "", wrong("this is neither the broker's address nor a code", whole)
		}
		return code, nil
	}

	query, _, _ = strings.Cut(query, "#")
	// A "+" is one that the broker left as it was: of all parameters only error_description may hold spaces.
	// What cannot be read is left out of params; it may be something that nobody needs.
	params, err := url.ParseQuery(strings.ReplaceAll(query, "+", "%2B"))
	for _, name := range []string{"code", "state", "error", "iss"} {
		if len(params[name]) > 1 {
			return "", wrong("the address holds more than one "+name, whole)
		}
	}
	state := params.Get("state")
	switch {
	case state != "" && subtle.ConstantTimeCompare([]byte(state), []byte(login.State)) != 1:
		return "", wrong("the address belongs to another login", "close older tabs of the login page and log in with the newest address")
	case params.Has("iss") && c.Issuer != "" && params.Get("iss") != c.Issuer:
		return "", wrong("the address comes from another broker", "log in again from the start")
	case params.Get("error") != "":
		return "", c.declined(login, params)
	case !params.Has("code") && err != nil:
		return "", wrong("the address is damaged", whole)
	case !params.Has("code"):
		return "", wrong("the address holds no code", whole)
	case params.Get("code") == "":
		return "", wrong("the address holds an empty code", "log in again")
	case state == "" && login.State != "":
		return "", wrong("the address holds no state, so nothing shows that it belongs to this login", whole)
	}
	code := params.Get("code")
	if !visible(code) {
		return "", wrong("the code holds a character that no code has", whole)
	}
	return code, nil
}

// declined is what the broker said instead of sending a code: RFC 6749, section 4.1.2.1.
func (c *Config) declined(login *brokerauth.Login, params url.Values) error {
	description := strings.ReplaceAll(params.Get("error_description"), "+", " ")
	call := &call{Config: c, op: "login", secrets: []string{login.Secret, login.State, params.Get("code")}}
	err := call.refused(0, answer{codes: []string{params.Get("error")}, texts: []string{description}})
	switch params.Get("error") {
	case "access_denied":
		err.Kind = brokerauth.ErrLoginRequired
		err.Hint = "the login was declined: log in again and allow access"
	case "invalid_request", "invalid_scope", "unsupported_response_type":
		err.Kind = brokerauth.ErrRejected
		err.Hint = "compare client id, redirect URL and scopes with the broker's developer portal"
	}
	return err
}

// address reads s if it is one, whole or in part: browsers hide the scheme, and a server knows only path and query.
// It returns nil, true for one that makes no sense.
func address(s, redirect string) (u *url.URL, ok bool) {
	scheme, rest, _ := strings.Cut(redirect, "://")
	host := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		host = rest[:i]
	}
	before, query, _ := strings.Cut(s, "?")
	first, _, found := strings.Cut(before, "://")
	switch {
	case found && !strings.ContainsAny(first, "=&/"): // not the one of a parameter
	case host != "" && strings.HasPrefix(s, host) || before != "" && before[0] != '/' && hasParam(query):
		s = scheme + "://" + s
	case strings.HasPrefix(s, "/") && hasParam(query):
		s = scheme + "://" + host + s
	default:
		return nil, false
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return nil, true
	}
	return u, true
}

// hasParam reports whether query holds a parameter that a broker's callback has.
func hasParam(query string) bool {
	for part := range strings.SplitSeq(query, "&") {
		switch name, _, found := strings.Cut(part, "="); name {
		case "code", "state", "error":
			if found {
				return true
			}
		}
	}
	return false
}

// isLoginPage reports whether u is where the login began, of which a user may paste the address by mistake.
func isLoginPage(u *url.URL, authURL string) bool {
	page, err := url.Parse(authURL)
	return err == nil && samePlace(u, page) && !u.Query().Has("code") && !u.Query().Has("error")
}

// samePlace compares host, port and path. A browser may have turned http into https.
func samePlace(u, v *url.URL) bool {
	return strings.EqualFold(u.Hostname(), v.Hostname()) && (u.Port() == v.Port() || port(u) == port(v)) &&
		cmp.Or(u.Path, "/") == cmp.Or(v.Path, "/")
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	case u.Scheme == "http":
		return "80"
	}
	return ""
}

// place is an address without what may be secret.
func place(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// origin is an address's scheme, host and port in their one spelling.
func origin(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return ""
	}
	host := strings.ToLower(u.Host)
	if p := port(u); p != "" && u.Port() == p && (u.Scheme == "https" && p == "443" || u.Scheme == "http" && p == "80") {
		host = strings.TrimSuffix(host, ":"+p)
	}
	return u.Scheme + "://" + host
}

// rebase moves address under base, which is valid.
func rebase(base, address string) string {
	u, err := url.Parse(address)
	if err != nil || address == "" {
		return address
	}
	prefix := ""
	if b, err := url.Parse(base); err == nil {
		prefix = strings.TrimSuffix(b.EscapedPath(), "/")
	}
	return origin(base) + prefix + strings.TrimSuffix(u.EscapedPath(), "/")
}

// endpointFault says what is wrong with an address that secrets are sent to, without showing it.
func endpointFault(address string) string {
	u, err := url.Parse(address)
	switch {
	case address == "":
		return "is missing"
	case err != nil || !visible(address) || u.Hostname() == "" || u.Opaque != "":
		return "is not an address such as https://example.com"
	case u.User != nil:
		return "holds a user name or password: leave them out"
	case strings.ContainsAny(address, "?#"):
		return `holds a "?" or "#": leave out what begins there`
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return "is not https: plain http is for loopback only"
	case u.Scheme != "https" && u.Scheme != "http":
		return "is not https"
	}
	return ""
}

// redirectFaults says all that is wrong with a callback at any broker.
func redirectFaults(address string) (faults []string) {
	u, err := url.Parse(address)
	switch {
	case address == "":
		return []string{"is missing"}
	case strings.TrimSpace(address) != address:
		return []string{"has a space at its start or end: leave that out"}
	case err != nil || !visible(address) || u.Scheme == "" || u.Host == "" && u.Path == "":
		return []string{"is not an address: give the whole of it, as registered"}
	}
	if u.User != nil {
		faults = append(faults, "holds a user name or password: leave them out")
	}
	if strings.Contains(address, "#") {
		faults = append(faults, `holds a "#", which no callback may have`)
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); strings.HasSuffix(u.Host, ":") || u.Port() != "" && (err != nil || port == 0) {
		faults = append(faults, "names no port from 1 to 65535 behind its colon")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.Unmap().IsUnspecified() {
		faults = append(faults, "names "+u.Hostname()+", at which programs listen but nobody can be reached: "+
			"register and use 127.0.0.1 instead")
	}
	return faults
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// visible reports whether s has only characters that a token, key or address may have.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
