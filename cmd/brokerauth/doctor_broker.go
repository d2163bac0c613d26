package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/brokerauth/brokerauth"
)

// whatBrokersSay is where the docs list the brokers' refusals.
const whatBrokersSay = "troubleshooting.md#what-brokers-say"

// product is one of a broker's API products, and a call that shows whether an app has it.
type product struct {
	name, path string
}

// checkBroker looks at one broker's settings, callback and login, and with --online at its API.
func (d *doctor) checkBroker(ctx context.Context, b broker) {
	if err := d.a.ended(ctx, b); err != nil {
		if e, ok := errors.AsType[*brokerauth.Error](err); ok && d.only == nil {
			d.note(b.name, "settings", e.Description, e.Hint)
			return
		}
		d.wrong(exitCode(err), b.name, "settings", err.Error(), "", "porting-td-to-schwab.md")
		return
	}
	d.checkValues(b)
	p, _, err := d.found.provider(ctx, b, nil)
	if err != nil {
		for fault := range strings.SplitSeq(err.Error(), "\n") {
			topic := "settings"
			if strings.Contains(fault, "callback URL") && !errors.Is(err, errMissing) {
				topic = "callback"
			}
			found, todo, _ := strings.Cut(strings.TrimPrefix(fault, b.name+": "), errMissing.Error()+": ")
			if found == "" {
				found = errMissing.Error()
			}
			todo, _, _ = strings.Cut(todo, ": see "+docs)
			d.wrong(2, b.name, topic, found, todo, b.guide)
		}
	} else {
		d.checkCallback(b)
	}
	store, ok := d.storeOf(ctx, b.name)
	if !ok {
		return
	}
	if p == nil {
		for _, key := range d.keys {
			if key.Provider == b.name && key.Profile == d.a.profile {
				d.checkLogin(ctx, b, d.a.session(onlyStored{key: key}, store, key.Profile))
			}
		}
		return
	}
	d.checkLogin(ctx, b, d.a.session(p, store, d.a.profile))
	for _, key := range d.keys {
		if key.Provider == b.name && key.Profile == d.a.profile && key.Identity != p.Info().Identity {
			d.note(b.name, "login", "another is stored, of an app, a grant or a base URL that the settings do not name ("+shortened(key)+"…)",
				"if it is out of use, run: "+d.a.deletion(key))
		}
	}
	if d.online {
		d.checkProducts(ctx, b, d.a.session(p, store, d.a.profile))
	}
}

// checkValues tells where the settings come from, and what no broker's key or secret looks like.
func (d *doctor) checkValues(b broker) {
	var set []string
	values := make(map[string]string)
	for _, s := range b.settings {
		value, from, err := d.found.find(s.name)
		if err != nil || value == "" {
			continue // whoever opens the broker says so
		}
		set = append(set, fmt.Sprintf("%s from %s, %d characters", s.name, from, len(value)))
		odd := oddity(value)
		if b.name != "tdameritrade" && strings.HasSuffix(strings.ToUpper(value), "@AMER.OAUTHAP") {
			odd = "is TD Ameritrade's, whose keys work nowhere else"
		}
		if odd != "" {
			d.wrong(2, b.name, "settings", s.name+" "+odd, "copy it again from the broker's website, and nothing else with it", b.guide)
			continue
		}
		for name, other := range values {
			if other == value {
				d.wrong(2, b.name, "settings", s.name+" and "+name+" are the same", "copy both again from the broker's website", b.guide)
			}
		}
		values[s.name] = value
	}
	if len(set) > 0 {
		d.ok(b.name, "settings", strings.Join(set, "; "))
	}
	base, err := d.found.get(b.prefix + baseURL)
	if err == nil && base != "" {
		at := "an address that cannot be read"
		if u, err := url.Parse(base); err == nil && u.Host != "" {
			at = u.Scheme + "://" + u.Host
		}
		d.note(b.name, "settings", b.prefix+baseURL+" is set: tokens and calls go to "+at+", not to the broker itself", "")
		return // an emulated broker's keys have any form
	}
	for _, s := range b.settings {
		if value := values[s.name]; value != "" && len(s.lengths) > 0 && !slices.Contains(s.lengths, len(value)) {
			d.note(b.name, "settings", fmt.Sprintf("%s has %d characters; those that are known have %s", s.name, len(value), list(s.lengths)),
				"compare it with the broker's website: it may be cut, or key and secret exchanged")
		}
		if s.grant {
			d.checkGrant(b, s.name, values[s.name])
		}
	}
}

// oddity says what is odd about a value that came from a broker's website.
func oddity(value string) string {
	switch {
	case strings.ContainsFunc(value, unicode.IsSpace):
		return "holds white space, which no key, secret or callback URL does"
	case strings.ContainsAny(value, `"'“”‘’`):
		return "holds a quotation mark, which no key, secret or callback URL does"
	case strings.ContainsAny(value, "…<>"):
		return "is an example's: it holds a character that stands for something to be filled in"
	case strings.ContainsFunc(value, func(r rune) bool { return r < 0x21 || r > 0x7e }):
		return "holds a character that no key, secret or callback URL has, and which may not be seen"
	}
	return ""
}

func list(numbers []int) string {
	words := strings.Fields(strings.Trim(fmt.Sprint(numbers), "[]"))
	return strings.Join(words, " or ")
}

// checkGrant looks at what a grant says of itself. It is a JWT, whose middle everybody can read.
func (d *doctor) checkGrant(b broker, name, grant string) {
	if grant == "" {
		return
	}
	parts := strings.Split(grant, ".")
	var header, claims struct{ Typ, Iss, Scope string }
	if len(parts) < 3 || !readPart(parts[len(parts)-3], &header) || !readPart(parts[len(parts)-2], &claims) {
		d.note(b.name, "settings", name+" is no JWT, which grants are", "compare it with what Create Grant has shown: it may be cut")
		return
	}
	if strings.HasPrefix(header.Typ, "at+") {
		d.wrong(2, b.name, "settings", name+" is an access token, which ends after minutes", "take the refresh token that Create Grant has shown", b.guide)
		return
	}
	sandbox := strings.Contains(claims.Iss, "cert.") || strings.Contains(claims.Iss, "sandbox.")
	if claims.Iss != "" && sandbox != strings.HasSuffix(b.name, "sandbox") {
		which := map[bool]string{false: "tastytrade", true: "tastytrade-sandbox"}[sandbox]
		d.wrong(2, b.name, "settings", name+" is of "+which+", which "+b.name+" does not know", "set it as the grant of "+which+", and name that broker", b.guide)
	}
}

func readPart(part string, v any) bool {
	raw, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(raw, v) == nil
}

// checkCallback tells whether a browser's answer can be taken here. The broker takes the callback URL as such.
func (d *doctor) checkCallback(b broker) {
	i := slices.IndexFunc(b.settings, func(s setting) bool { return s.name == b.prefix+"_CALLBACK_URL" })
	if i < 0 {
		return
	}
	callback, err := d.found.get(b.settings[i].name)
	u, parseErr := url.Parse(callback)
	if err != nil || parseErr != nil || callback == "" {
		return
	}
	shown := (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	if before, _, _ := strings.Cut(callback, "?"); strings.ToLower(before) != before {
		d.note(b.name, "callback", before+" has upper case", "see that the broker's website has it to the letter")
	}
	if strings.HasSuffix(u.Path, "/") {
		d.note(b.name, "callback", shown+" ends in a slash", "see that the broker's website has it, too")
	}
	const change = "; to change it, change it at the broker's website, too, which at Schwab takes days"
	host, port := u.Hostname(), u.Port()
	if ip := net.ParseIP(host); !strings.EqualFold(host, "localhost") && !ip.IsLoopback() {
		d.note(b.name, "callback", shown+" is not on this computer: a login takes the pasted address", "")
		return
	}
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[strings.ToLower(u.Scheme)]
	}
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	switch {
	case err == nil:
		listener.Close()
		d.ok(b.name, "callback", shown+": the browser's answer can be taken there")
	case errors.Is(err, syscall.EACCES):
		d.note(b.name, "callback", shown+": port "+port+" needs rights that this user does not have, so a login takes the pasted address",
			"a port such as 8182 needs none"+change)
	default:
		d.wrong(1, b.name, "callback", fmt.Sprintf("%s: nothing can listen there: %v", shown, cause(err)),
			"end the program that listens there, which may be a login that was left, or give --flow paste", "troubleshooting.md#the-callback")
	}
}

// cause is a network error without the addresses around it.
func cause(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // its address is nobody's business
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// checkLogin tells how long a login lasts, and what the broker's last refusal means.
func (d *doctor) checkLogin(ctx context.Context, b broker, s *brokerauth.Session) {
	st, err := s.Status(ctx)
	again := "run: " + d.a.line("login", b.name, d.a.profile)
	if err != nil {
		d.wrong(max(exitCode(err), 1), b.name, "login", forPeople(err), map[bool]string{true: again + ", which sets that record aside"}[errors.Is(err, brokerauth.ErrCorrupt)],
			"troubleshooting.md#the-store")
		return
	}
	d.saw(st.LoggedInAt)
	if e, ok := errors.AsType[*brokerauth.Error](st.LastError); ok {
		said := fmt.Sprintf("HTTP %d", e.Status)
		if e.Status == 0 {
			said = "no answer"
		}
		for _, text := range []string{e.Code, e.Description} {
			if text != "" {
				said += ": " + text
			}
		}
		switch {
		case errors.Is(e, brokerauth.ErrLoginRequired):
			d.wrong(3, b.name, "last error", "this login has ended, and nothing but a new one helps ("+said+"): "+e.Hint, again, whatBrokersSay)
			return
		case errors.Is(e, brokerauth.ErrRejected):
			d.wrong(2, b.name, "last error", "the broker refuses the app, the grant or the settings, and is asked again when they change ("+said+")", e.Hint, whatBrokersSay)
			if mints(s.Provider) {
				return
			}
		default:
			d.note(b.name, "last error", "it passes, and the broker is asked again by itself ("+said+")", e.Hint)
		}
	}
	switch {
	case st.MovedTo != "":
		d.wrong(3, b.name, "login", fmt.Sprintf("it was moved to %s, %s", st.MovedTo, moment(st.MovedAt)), "use it there; if it never arrived, "+again, "coming-from.md")
	case mints(s.Provider):
		d.ok(b.name, "login", "the grant in the settings is one: nobody logs in")
	case !st.LoggedIn && slices.ContainsFunc(d.findings, func(f finding) bool { return f.Broker == b.name && f.code == 2 }):
		d.note(b.name, "login", "nobody is logged in", "") // first the settings must be mended
	case !st.LoggedIn:
		d.wrong(3, b.name, "login", "nobody is logged in", again, b.guide)
	case st.LoginRequired(0):
		d.note(b.name, "login", clocks(st), again+"; only the broker's answer is final")
	default:
		d.ok(b.name, "login", clocks(st))
	}
	if since := time.Since(st.Refreshing); !st.Refreshing.IsZero() && since > time.Minute {
		d.note(b.name, "login", "a renewal began "+inWords(since)+" ago and never ended: its process was killed, or hangs", "nothing: whoever next needs a token takes over")
	}
}

// checkProducts makes one call to each of the broker's API products.
func (d *doctor) checkProducts(ctx context.Context, b broker, s *brokerauth.Session) {
	info := s.Provider.Info()
	t, err := s.Token(ctx)
	if err = closed(s, err); err != nil {
		t = nil
		if code := exitCode(err); code != 3 { // of that checkLogin has told
			d.wrong(max(code, 1), b.name, "online", "no token: "+forPeople(err), "", whatBrokersSay)
		}
	}
	if len(b.products) == 0 {
		return
	}
	if t == nil {
		if _, err := d.ask(ctx, info, b.products[0], nil); err != nil {
			d.unreachable(b, err)
			return
		}
		d.ok(b.name, "online", info.BaseURL+" can be reached; more cannot be asked without a token")
		return
	}
	var said, with, without []string
	for _, product := range b.products {
		status, err := d.ask(ctx, info, product, t)
		if err != nil {
			d.unreachable(b, err)
			return
		}
		said = append(said, fmt.Sprintf("%s %d", product.name, status))
		switch {
		case status == http.StatusUnauthorized, status == http.StatusForbidden:
			without = append(without, product.name)
		case status == http.StatusTooManyRequests, status >= 500, status/100 == 3:
			d.wrong(4, b.name, "online", fmt.Sprintf("%s answers %d", product.name, status), "try again later; if it stays, look at proxies", "troubleshooting.md#the-network")
			return
		default:
			with = append(with, product.name)
		}
	}
	answers := strings.Join(said, ", ")
	switch {
	case len(without) == 0:
		d.ok(b.name, "online", answers)
	case len(with) > 0:
		d.wrong(2, b.name, "online", answers+": the token is good, and the app lacks "+strings.Join(without, " and "), b.lacking, b.guide)
	default:
		d.wrong(1, b.name, "online", answers+": the API takes this token for nothing",
			"run: "+d.a.line("refresh", b.name, d.a.profile)+", then this again; if it stays: "+b.lacking, b.guide)
	}
}

func (d *doctor) unreachable(b broker, err error) {
	d.wrong(4, b.name, "online", fmt.Sprintf("the API cannot be reached: %v", cause(err)), "see whether a browser reaches the broker, and look at proxies and firewalls",
		"troubleshooting.md#the-network")
}

// ask makes one call, and compares the clocks. A Session's Client would renew the token at a 401, and ask again.
func (d *doctor) ask(ctx context.Context, info brokerauth.Info, p product, t *brokerauth.Token) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, info.BaseURL+p.path, nil)
	if err != nil {
		return 0, err
	}
	if info.UserAgent != "" {
		req.Header.Set("User-Agent", info.UserAgent)
	}
	if t != nil {
		t.OAuth2().SetAuthHeader(req)
	}
	client := &http.Client{
		Timeout:       20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	sent := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	d.compareClocks(info.Name, resp.Header.Get("Date"), sent, time.Now())
	return resp.StatusCode, nil
}

// compareClocks compares this computer's clock with a broker's, which told its own between sent and received, in whole
// seconds and perhaps from a cache.
func (d *doctor) compareClocks(broker, date string, sent, received time.Time) {
	at, err := http.ParseTime(date)
	if err != nil {
		return
	}
	d.compared = true
	const most = 30 * time.Second
	switch {
	case at.After(received.Add(most)):
		d.skew = inWords(at.Sub(received)) + " behind " + broker + "'s"
	case at.Before(sent.Add(-most)):
		d.skew = inWords(sent.Sub(at)) + " ahead of " + broker + "'s"
	}
}
