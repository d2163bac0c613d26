package flows

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/brokerauth/brokerauth"
)

// Web is a handler that logs the users of a web app in to one broker. An app mounts one for each broker, at any path:
//
//	mux.Handle("/schwab/", &flows.Web{Session: schwabOf, Keys: keys})
//
// and registers .../schwab/callback with the broker as the redirect address. (One that is registered already and ends
// otherwise does as well: the rest is then in the same folder.) What counts is the last part of the path:
//
//	GET  start        sends the user to the broker's login page
//	GET  callback     takes them back, finishes the login, and sends them on to After
//	GET  status       how long the login lasts: a page for a browser, [brokerauth.Status] in JSON for a program
//	POST refresh      renews the access token, unless it is less than a minute old
//	POST disconnect   deletes the login
//
// The path alone, with a slash at its end, is status, too. Of a page, refresh and disconnect are forms' targets, which
// lead on to status; a program that takes JSON is answered with the status, or an object with "error".
//
// # Many hosts
//
// A login that waits is in the user's own browser, in a sealed cookie, so any host that has Keys and the store can finish
// it, after a restart, too. The hosts agree in the store who sends a code to the broker: reloads and parallel requests,
// wherever they arrive, cause one exchange and get the same answer. That leaves one small record a user in the
// store, which has no secret.
//
// # Who the user is
//
// The app knows, by its own session cookie; that must be SameSite=Lax, as a Strict one does not come along when the
// broker sends the user back. A login is finished only in the browser, and for the Session's key, that it began with,
// so no two users may share a profile. Other sites' pages, those of subdomains included, can neither post nor start
// anything.
//
// # Behind a proxy
//
// All redirects but those to the broker and to After are relative, and no header says where they lead: so any prefix
// may be cut off on the way. The proxy must leave the Host header as it is, and should not log the callback's query.
//
// The cookie's name begins with "__Host-", which browsers take by https alone. A redirect address that is http is
// good for development on this computer, and its cookie has neither that name nor that protection.
type Web struct {
	// Session returns the Session of the user who sent r, whose Provider has a login page. The app closes it, and does
	// best to return the same one to the same user each time. Any error is answered 403, and its text is shown to nobody.
	// At a callback, r has no query.
	Session func(r *http.Request) (*brokerauth.Session, error)
	// Keys seal the cookies. Each is 32 random bytes that all of the app's hosts share and nobody else has. The first
	// one seals and all open, so a new key is first added at the end, on all hosts, and then moved to the front.
	Keys [][]byte
	// After is where a login that went well, or its end, leads to: a path of the app's. Empty: status.
	After string
}

// Format prints how many keys there are and none of them, whatever the verb.
func (web Web) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "web{keys=%d after=%q}", len(web.Keys), web.After)
}

const (
	// pendingFor is how long a user may take at the broker.
	pendingFor = 15 * time.Minute
	// answerFor bounds the wait for another request, perhaps at another host, that has sent the code.
	answerFor = 30 * time.Second
	// toldFor is how long what went wrong waits for the page that tells it.
	toldFor = 5 * time.Minute
	// maxCookie is what browsers keep of a cookie's name and value, less some room.
	maxCookie = 4096 - 64
)

// visit is one request of a user's.
type visit struct {
	*Web
	w      http.ResponseWriter
	r      *http.Request
	action string // the last part of the path
	query  string
	s      *brokerauth.Session
	key    brokerauth.Key
	status brokerauth.Status
	err    error // why there is no status
}

// ServeHTTP answers the requests that [Web] lists.
func (web *Web) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	webHeaders(w)
	v := &visit{Web: web, w: w, r: r, query: r.URL.RawQuery}
	method, serve := http.MethodGet, v.show
	v.action = r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	params, _ := url.ParseQuery(v.query)
	comesBack := params.Has("code") || params.Has("error")
	switch {
	case v.action == "callback" || comesBack && !reserved(v.action):
		serve = v.callback
		w.Header().Set("Referrer-Policy", "no-referrer")
		v.r = r.Clone(r.Context())
		v.r.URL.RawQuery, v.r.RequestURI, v.r.Form = "", r.URL.EscapedPath(), nil
	case v.action == "" || v.action == "status":
	case v.action == "start":
		serve = v.start
	case v.action == "refresh":
		method, serve = http.MethodPost, v.refresh
	case v.action == "disconnect":
		method, serve = http.MethodPost, v.disconnect
	default:
		v.refuse(http.StatusNotFound, "Nothing is here", "")
		return
	}
	switch {
	case r.Method != method:
		// Not HEAD, either: it would spend a code that nobody sees the answer of.
		w.Header().Set("Allow", method)
		v.refuse(http.StatusMethodNotAllowed, "Not this way", "")
		return
	case method == http.MethodPost && new(http.CrossOriginProtection).Check(r) != nil:
		v.refuse(http.StatusForbidden, "Not from there", "Another site's page has asked for this, and must not.")
		return
	}
	if web.Session == nil || len(web.Keys) == 0 || slices.ContainsFunc(web.Keys, func(key []byte) bool { return len(key) != chacha20poly1305.KeySize }) {
		v.fault("flows.Web needs Session and Keys of 32 bytes each", nil)
		return
	}
	s, err := web.Session(v.r)
	if err != nil || s == nil {
		if v.r != r {
			v.redirect("status") // away from the code first
			return
		}
		v.refuse(http.StatusForbidden, "Sign in first", "")
		return
	}
	v.s = s
	v.status, v.err = s.Status(r.Context())
	if v.key = v.status.Key; v.key == (brokerauth.Key{}) {
		v.fault("this Session cannot be used", v.err)
		return
	}
	serve()
}

// start sends the user to the broker.
func (v *visit) start() {
	from, to := v.r.Header.Get("Sec-Fetch-Site"), v.r.Header.Get("Sec-Fetch-Dest")
	switch {
	case to != "" && to != "document" || strings.Contains(v.r.Header.Get("Sec-Purpose")+v.r.Header.Get("Purpose"), "prefetch"):
		v.refuse(http.StatusForbidden, "Not this way", "Open this address in a browser.")
		return
	case from != "" && from != "same-origin" && from != "none":
		// A link in a mail leads here, but so may any page. A login of the page's choosing must not take another's place.
		v.page(http.StatusOK, "Log in to "+v.key.Provider+"?", `<p><a class="button" href="start">Log in</a></p>`)
		return
	}
	login, err := v.s.Begin(v.r.Context())
	if err == nil {
		err = v.check(login)
	}
	if err != nil {
		v.fault("a login cannot begin", err)
		return
	}
	// Nobody is to log in for nothing: this fails if the store cannot save.
	if _, err := v.mark(v.r.Context(), attempt{ID: attemptID(login), Began: login.Began}); err != nil {
		v.fault("nobody was asked to log in, because the store cannot save a login", err)
		return
	}
	if err := v.keep(note{Login: login}, pendingFor, strings.HasPrefix(login.RedirectURL, "https:")); err != nil {
		v.fault("a login cannot begin", err)
		return
	}
	v.redirect(login.URL)
}

// check reports a login that could not come back here.
func (v *visit) check(login *brokerauth.Login) error {
	u, err := url.Parse(login.RedirectURL)
	switch {
	case err != nil || reserved(lastPart(u)):
		return fmt.Errorf("%s: the redirect address %s is none that flows.Web answers", v.key.Provider, login.RedirectURL)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return fmt.Errorf("%s: the redirect address %s is http, and a code would cross the network in the clear", v.key.Provider, login.RedirectURL)
	}
	return nil
}

func lastPart(u *url.URL) string { return u.Path[strings.LastIndex(u.Path, "/")+1:] }

// reserved reports a last part of a path that no redirect address may have.
func reserved(action string) bool {
	return slices.Contains([]string{"start", "status", "refresh", "disconnect"}, action)
}

func loopback(host string) bool {
	return strings.EqualFold(host, "localhost") || net.ParseIP(host).IsLoopback()
}

// callback takes the user back. It always leads on, as the code in its address must not stay where the user sees it.
func (v *visit) callback() {
	n, ok := v.open()
	params, _ := url.ParseQuery(v.query)
	state, login := params["state"], n.Login
	if !ok || login == nil || !v.isFor(login) ||
		login.State != "" && (len(state) != 1 || subtle.ConstantTimeCompare([]byte(state[0]), []byte(login.State)) != 1) {
		// A login that waits goes on waiting: any page can lead a browser here.
		v.redirect("status?other")
		return
	}
	told, err := v.finish(login)
	if err != nil {
		told = v.words(err)
	}
	secure := strings.HasPrefix(login.RedirectURL, "https:")
	switch {
	case told != "":
		if err := v.keep(note{Told: told}, toldFor, secure); err != nil {
			v.fault("a user cannot be told what went wrong", err)
			return
		}
		v.redirect("status")
	default:
		v.forget(secure)
		v.redirect(cmp.Or(v.After, "status"))
	}
}

// isFor reports whether the request came to login's redirect address, as far as a proxy lets that be seen.
func (v *visit) isFor(login *brokerauth.Login) bool {
	u, err := url.Parse(login.RedirectURL)
	return err == nil && lastPart(u) == v.action
}

// finish completes the login, if no other request does, and says what it came to; empty: all is well.
func (v *visit) finish(login *brokerauth.Login) (told string, err error) {
	ctx := v.r.Context()
	a := attempt{ID: attemptID(login), Began: login.Began, Sent: true}
	mine, err := v.mark(ctx, a)
	if err != nil {
		return "", err
	}
	if !mine {
		return v.await(ctx, a.ID)
	}
	// From here on it is carried to its end, whether or not anybody waits for the answer.
	ctx = context.WithoutCancel(ctx)
	address, _, _ := strings.Cut(login.RedirectURL, "?")
	if err := v.s.Complete(ctx, login, address+"?"+v.query); err != nil {
		a.Told = v.words(err)
	}
	a.Done = true
	if _, err := v.mark(ctx, a); err != nil {
		slog.Warn("brokerauth: what a login came to cannot be kept for requests that repeat it", "key", v.key, "error", err)
	}
	return a.Told, nil
}

// attempt is what the hosts know of a login that was begun.
type attempt struct {
	ID    string    `json:"id"`
	Began time.Time `json:"began"`
	Sent  bool      `json:"sent,omitempty"` // somebody has taken it on to send its code
	Done  bool      `json:"done,omitempty"`
	Told  string    `json:"told,omitempty"` // why it failed
}

// attempts is the record of one user's.
type attempts struct {
	Version  int       `json:"v"`
	Attempts []attempt `json:"attempts"`
}

// maxAttempts bounds the record. Who begins more logins than that at a time loses no more than that guard.
const maxAttempts = 16

func attemptID(login *brokerauth.Login) string {
	sum := sha256.Sum256([]byte(login.State + "\n" + login.Secret))
	return hex.EncodeToString(sum[:16])
}

// attemptsKey is where the user's attempts are.
func (v *visit) attemptsKey() brokerauth.Key {
	return brokerauth.Key{Provider: "~web", Identity: v.hash(), Profile: "attempts"}
}

// hash stands for the user's key where that must not show.
func (v *visit) hash() string {
	sum := sha256.Sum256([]byte(v.key.String()))
	return hex.EncodeToString(sum[:16])
}

// attempts loads the record.
func (v *visit) attempts(ctx context.Context) (raw []byte, rec attempts, err error) {
	raw, err = v.s.Store.Load(ctx, v.attemptsKey())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, rec, err
	}
	if raw != nil && json.Unmarshal(raw, &rec) != nil {
		rec = attempts{} // it guards against repetitions only
	}
	return raw, rec, nil
}

// mark writes a into the record, and reports false if another request was there first.
func (v *visit) mark(ctx context.Context, a attempt) (bool, error) {
	for {
		raw, rec, err := v.attempts(ctx)
		if err != nil {
			return false, err
		}
		kept := attempts{Version: 1}
		for _, old := range rec.Attempts {
			switch {
			case old.ID == a.ID && old.Sent && !a.Done:
				return false, nil
			case old.ID != a.ID && time.Since(old.Began) < pendingFor+answerFor:
				kept.Attempts = append(kept.Attempts, old)
			}
		}
		kept.Attempts = append(kept.Attempts, a)
		kept.Attempts = kept.Attempts[max(0, len(kept.Attempts)-maxAttempts):]
		text, err := json.Marshal(kept)
		if err != nil {
			return false, err
		}
		swapped, err := v.s.Store.CompareAndSwap(ctx, v.attemptsKey(), raw, text)
		if err != nil || swapped {
			return swapped, err
		}
	}
}

// await waits for what another request's exchange comes to.
func (v *visit) await(ctx context.Context, id string) (told string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerFor)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, rec, err := v.attempts(ctx)
		i := slices.IndexFunc(rec.Attempts, func(a attempt) bool { return a.ID == id })
		switch {
		case err == nil && i < 0:
			return "What this login came to is no longer known.", nil
		case err == nil && rec.Attempts[i].Done:
			return rec.Attempts[i].Told, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "The broker has not answered yet. Look again in a minute.", nil
		}
	}
}

// refresh renews the access token, within the bounds that the Session sets to programs: of many users, one who clicks
// on and on must not bring the broker's anger on all.
func (v *visit) refresh() {
	ctx, began := v.r.Context(), time.Now().Round(0)
	t, err := v.s.Token(ctx)
	if err == nil && t.Issued.Before(began) {
		_, err = v.s.Refresh(ctx, t)
	}
	v.posted(err, "status")
}

// disconnect deletes the login.
func (v *visit) disconnect() { v.posted(v.s.Logout(v.r.Context()), cmp.Or(v.After, "status")) }

// posted answers a POST.
func (v *visit) posted(err error, next string) {
	code := http.StatusInternalServerError
	switch {
	case err == nil && v.wantsPage():
		v.redirect(next)
		return
	case err == nil:
		v.status, v.err = v.s.Status(context.WithoutCancel(v.r.Context()))
		v.show()
		return
	case errors.Is(err, brokerauth.ErrUnavailable):
		code = http.StatusServiceUnavailable
	case errors.Is(err, brokerauth.ErrLoginRequired), errors.Is(err, brokerauth.ErrRejected):
		code = http.StatusConflict
	}
	v.refuse(code, "This failed", v.words(err))
}

// words is what a user may know of an error. What concerns the store is for whoever runs the app.
func (v *visit) words(err error) string {
	if e, ok := errors.AsType[*brokerauth.Error](err); ok {
		return e.Error()
	}
	slog.Warn("brokerauth: a request to flows.Web failed", "key", v.key, "error", err)
	return "This failed, and whoever runs this site has been told. Try again later."
}

// fault is an answer to what the user has no part in.
func (v *visit) fault(what string, err error) {
	slog.Error("brokerauth: "+what, "key", v.key, "error", err)
	text := "Whoever runs this site has been told. Try again later."
	if e, ok := errors.AsType[*brokerauth.Error](err); ok {
		text = e.Error()
	}
	v.refuse(http.StatusInternalServerError, "This does not work now", text)
}

// note is what a user's browser keeps: a login that waits, or what went wrong with one.
type note struct {
	Login *brokerauth.Login `json:"login,omitempty"`
	Told  string            `json:"told,omitempty"`
	Until time.Time         `json:"until"`
}

// cookie is the name of the user's cookie. Each user's and broker's is another, but one holds one login: the newest.
func (v *visit) cookie(secure bool) string {
	if secure {
		return "__Host-brokerauth-" + v.hash()
	}
	return "brokerauth-" + v.hash()
}

// keep puts a note into the user's browser, in the place of any other.
func (v *visit) keep(n note, life time.Duration, secure bool) error {
	n.Until = time.Now().Add(life)
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	aead, err := chacha20poly1305.NewX(v.Keys[0])
	if err != nil {
		return err
	}
	name := v.cookie(secure)
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(text)+aead.Overhead())
	rand.Read(nonce)
	value := base64.RawURLEncoding.EncodeToString(aead.Seal(nonce, nonce, text, []byte(name)))
	if n := len(name) + len(value); n > maxCookie {
		return fmt.Errorf("%s: a login takes %d bytes of a cookie, and browsers keep %d", v.key.Provider, n, maxCookie)
	}
	v.set(name, value, int(life.Seconds()), secure)
	return nil
}

func (v *visit) set(name, value string, age int, secure bool) {
	http.SetCookie(v.w, &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: age, Secure: secure, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

func (v *visit) forget(secure bool) { v.set(v.cookie(secure), "", -1, secure) }

// open returns what the user's browser keeps, if it is of ours and not too old.
func (v *visit) open() (n note, ok bool) {
	for _, secure := range []bool{true, false} {
		name := v.cookie(secure)
		c, err := v.r.Cookie(name)
		if err != nil {
			continue
		}
		raw, err := base64.RawURLEncoding.DecodeString(c.Value)
		if err != nil || len(raw) < chacha20poly1305.NonceSizeX {
			continue
		}
		nonce, sealed := raw[:chacha20poly1305.NonceSizeX], raw[chacha20poly1305.NonceSizeX:]
		for _, key := range v.Keys {
			aead, err := chacha20poly1305.NewX(key)
			if err != nil {
				continue
			}
			var opened note
			text, err := aead.Open(nil, nonce, sealed, []byte(name))
			if err == nil && json.Unmarshal(text, &opened) == nil && time.Now().Before(opened.Until) {
				return opened, true
			}
		}
	}
	return note{}, false
}

// show tells how long the login lasts.
func (v *visit) show() {
	st := v.status
	switch {
	case errors.Is(v.err, brokerauth.ErrCorrupt):
		slog.Warn("brokerauth: a login cannot be read, and a new one takes its place", "key", v.key, "error", v.err)
		st = brokerauth.Status{Key: v.key, LastError: errors.New("the stored login cannot be read: log in again")}
	case v.err != nil:
		v.fault("a login cannot be looked up", v.err)
		return
	}
	st.KeptAs = "" // a place of the server's
	if st.SaveError != nil {
		st.SaveError = errors.New("the newest token is not stored yet")
	}
	if !v.wantsPage() {
		v.json(http.StatusOK, st)
		return
	}
	var text strings.Builder
	if n, ok := v.open(); ok && n.Told != "" {
		fmt.Fprintf(&text, `<p role="alert">%s</p>`, html.EscapeString(n.Told))
		for _, secure := range []bool{true, false} {
			if _, err := v.r.Cookie(v.cookie(secure)); err == nil {
				v.forget(secure)
			}
		}
	} else if v.query == "other" {
		text.WriteString(`<p role="alert">The broker's answer belongs to no login that waits in this browser: it was finished before, began more than ` +
			`15 minutes ago or in another browser, or a newer one has taken its place. Look below, and log in again if need be.</p>`)
	}
	when := func(t time.Time) string { return t.UTC().Format("Mon 2 Jan 2006 15:04 MST") }
	out := !st.LoggedIn || errors.Is(st.LastError, brokerauth.ErrLoginRequired)
	switch {
	case !st.LoggedIn:
		text.WriteString("<p>Nobody is logged in.</p>")
	case out:
		text.WriteString("<p>The login has ended.</p>")
	case st.LoginBy.IsZero():
		text.WriteString("<p>Logged in.</p>")
	default:
		fmt.Fprintf(&text, "<p>Logged in; log in again by %s.</p>", when(st.LoginBy))
	}
	if st.LoggedIn && !out && !st.AccessExpiresAt.IsZero() {
		fmt.Fprintf(&text, "<p>The access token lasts until %s, and is renewed by itself.</p>", when(st.AccessExpiresAt))
	}
	if st.LastError != nil {
		fmt.Fprintf(&text, "<p>%s</p>", html.EscapeString(st.LastError.Error()))
	}
	text.WriteString(`<p><a class="button" href="start">Log in</a></p>`)
	if st.LoggedIn {
		text.WriteString(`<form method="post" action="refresh"><button>Refresh</button></form>` +
			`<form method="post" action="disconnect"><button>Disconnect</button></form>`)
	}
	if v.After != "" {
		fmt.Fprintf(&text, `<p><a href="%s">Back</a></p>`, html.EscapeString(v.After))
	}
	v.page(http.StatusOK, st.Key.Provider, text.String())
}

// wantsPage tells a person's browser from a program, a page's script included.
func (v *visit) wantsPage() bool { return strings.Contains(v.r.Header.Get("Accept"), "text/html") }

// redirect leads on. Where to is relative, the app's own, or the broker's.
func (v *visit) redirect(to string) {
	v.w.Header().Set("Location", to)
	v.w.WriteHeader(http.StatusSeeOther) // never 307, which would send a form on
}

// refuse says what went wrong.
func (v *visit) refuse(code int, title, text string) {
	if !v.wantsPage() {
		v.json(code, map[string]string{"error": strings.TrimSuffix(title+": "+text, ": ")})
		return
	}
	v.page(code, title, "<p>"+html.EscapeString(text)+`</p><p><a href="status">Go on</a></p>`)
}

func (v *visit) json(code int, answer any) {
	text, err := json.Marshal(answer)
	if err != nil {
		code, text = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written"}`)
	}
	v.w.Header().Set("Content-Type", "application/json")
	v.w.WriteHeader(code)
	v.w.Write(append(text, '\n'))
}

const webStyle = style + `a,button{color:inherit}form{display:inline}.button,button{font:inherit;display:inline-block;` +
	`padding:.4rem 1rem;margin:0 .5rem .5rem 0;border:1px solid;border-radius:.5rem;background:none;text-decoration:none;cursor:pointer}`

// page answers with a page whose body is HTML.
func (v *visit) page(code int, title, body string) {
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.w.WriteHeader(code)
	fmt.Fprintf(v.w, `<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>%[1]s</title><style>%[3]s</style></head>
<body><h1>%[1]s</h1>%[2]s</body></html>
`, html.EscapeString(title), body, webStyle)
}

// webHeaders keep whatever is in an address from going elsewhere, and the pages out of others'.
func webHeaders(w http.ResponseWriter) {
	sum := sha256.Sum256([]byte(webStyle))
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin") // with no-referrer, a form would not tell where it comes from
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+
		"'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
}
