package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
)

func (a *app) serveCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Show all logins on a page in the browser",
		Long: "Show all logins on a page in the browser, live, with buttons to log in, refresh and log out, until interrupted.\n\n" +
			"The first line of the answer is the page's address. It opens the page once, and only for whoever comes first; a new " +
			"address is printed when the page was closed. Only this computer can reach it.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "loopback address and port; port 0 picks one")
	cmd.RunE = a.action(func(ctx context.Context, _ []string) error {
		host, _, err := net.SplitHostPort(listen)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return usageError{fmt.Errorf("%q is no address that only this computer reaches: write it like 127.0.0.1:8080", listen)}
		}
		found, err := a.settings()
		if err != nil {
			return err
		}
		d := &dashboard{
			app: a, found: found, ctx: ctx, cards: map[string]*card{}, secrets: map[[32]byte]bool{}, spent: map[[32]byte][32]byte{},
		}
		if err := d.open(ctx); err != nil { // what is wrong with a store is told here, not on a page
			return err
		}
		a.tell(found)
		l, err := listenAt(ctx, listen)
		if err != nil {
			return err
		}
		d.host = l.Addr().String()
		server := &http.Server{
			Handler: d.handler(), ReadTimeout: patience, WriteTimeout: patience, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
			ErrorLog: log.New(io.Discard, "", 0), BaseContext: func(net.Listener) context.Context { return ctx },
		}
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		d.invite()
		fmt.Fprintln(a.err, "brokerauth: open that address in a browser of this computer; interrupt to end")
		select {
		case <-ctx.Done():
			err = nil // an interrupt is how it is meant to end
		case err = <-done:
		}
		// First the handlers end, whose contexts have; so nothing begins from here on.
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if server.Shutdown(ending) != nil {
			server.Close()
		}
		return d.close(err)
	})
	return cmd
}

const (
	// patience bounds how long a request may be on its way, and how long an answer may wait to be read: every user of this
	// computer can connect. An answer that takes its time, as a stream or a button's, has it from when it is written.
	patience = 10 * time.Second
	// lookEvery is how often the store is looked at while somebody watches: others refresh and log in, too.
	lookEvery = time.Second
	// lookFor bounds one look at one login, or at one store's list of them.
	lookFor = 5 * time.Second
	// reloadFor is how long a page may be away, as when it is reloaded, before a new address is printed.
	reloadFor = 10 * time.Second
)

// dashboard serves the page. Whoever has one of its secrets may do all that the page can, and gets one for a ticket, once.
// A page keeps its secret in its tab's sessionStorage, which no other origin can read: cookies would be shared by all
// ports of this computer.
type dashboard struct {
	*app
	found *settings
	ctx   context.Context // of the whole run
	host  string          // where it listens
	work  sync.WaitGroup  // logins under way

	stores []keptStore
	usual  []usual // where a login can begin that is not stored

	looking sync.Mutex // held during a look at the stores

	mu       sync.Mutex
	cards    map[string]*card // by id
	others   []other
	lookedAt time.Time
	lookTook time.Duration
	lookErr  error

	ticket   string                // opens the page once; empty: spent
	spent    map[[32]byte][32]byte // the secret that each spent ticket was traded for; both as sums
	secrets  map[[32]byte]bool     // sums of those that count
	watchers int
}

// card is one login on the page.
type card struct {
	id      string
	key     brokerauth.Key
	store   keptStore
	session *brokerauth.Session
	stored  bool
	status  brokerauth.Status
	err     error // why there is no status
	failed  error // what went wrong with the last button
	busy    string
	cancel  context.CancelFunc // ends the login that waits for a person; nil: none does
	note    string             // for that person
}

// usual is a broker, the provider that the settings make for it, and the store that its login goes to.
type usual struct {
	provider brokerauth.Provider
	store    keptStore
}

// other is a broker at which no login can begin, and why.
type other struct {
	Broker string `json:"broker"`
	Text   string `json:"text"`
}

// invite prints an address that opens the page once. No browser is started with it: all users of this computer see the
// arguments of its programs, and whoever comes first has the page.
func (d *dashboard) invite() {
	d.mu.Lock()
	d.ticket = rand.Text()
	address := "http://" + d.host + "/#" + d.ticket // what is behind # stays in the browser
	d.mu.Unlock()
	d.say("%s", address)
}

func sum(secret string) [32]byte { return sha256.Sum256([]byte(secret)) }

// trade takes a ticket and returns a secret. A ticket that comes twice has been in two hands: what the first got for it
// counts no more.
func (d *dashboard) trade(ticket string) (secret string, ok bool) {
	d.mu.Lock()
	given := sum(ticket)
	if d.ticket != "" && given == sum(d.ticket) {
		secret = rand.Text() + rand.Text()
		d.ticket = ""
		d.spent[given] = sum(secret)
		d.secrets[sum(secret)] = true
		d.mu.Unlock()
		return secret, true
	}
	theirs, twice := d.spent[given]
	if twice {
		delete(d.spent, given)
		delete(d.secrets, theirs)
	}
	fresh := d.ticket == ""
	d.mu.Unlock()
	if twice {
		fmt.Fprintln(d.err, "brokerauth: the page's address was opened twice, so that page is locked. If you opened it once only, "+
			"another user of this computer has seen it.")
		if fresh {
			d.invite()
		}
	}
	return "", false
}

func (d *dashboard) knows(secret string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.secrets[sum(secret)]
}

//go:embed serve/page.html
var pageHTML []byte

//go:embed serve/page.css
var pageCSS []byte

//go:embed serve/page.js
var pageJS []byte

func (d *dashboard) handler() http.Handler {
	static := func(kind string, text []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", kind+"; charset=utf-8")
			w.Write(text)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", static("text/html", pageHTML))
	mux.HandleFunc("GET /page.css", static("text/css", pageCSS))
	mux.HandleFunc("GET /page.js", static("text/javascript", pageJS))
	mux.HandleFunc("POST /session", d.serveTicket)
	mux.HandleFunc("GET /events", d.known(d.serveEvents))
	for path, do := range map[string]func(context.Context, *card, request) (any, error){
		"/login": d.logIn, "/cancel": d.giveUp, "/refresh": d.renew, "/logout": d.logOut,
	} {
		mux.HandleFunc("POST "+path, d.known(d.button(do)))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "+
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
		site, post := r.Header.Get("Sec-Fetch-Site"), r.Method == http.MethodPost
		origin, plain := strings.CutPrefix(r.Header.Get("Origin"), "http://")
		switch {
		case !d.isHost(r.Host):
			// A page elsewhere can give 127.0.0.1 a name of its own and read what it says.
			http.Error(w, "this is not its address", http.StatusMisdirectedRequest)
		case site != "" && site != "same-origin" && site != "none" && (r.URL.Path != "/" || r.Header.Get("Sec-Fetch-Dest") != "document"),
			post && (!plain || !d.isHost(origin) || r.Header.Get("Content-Type") != "application/json"):
			http.Error(w, "only its own page may ask", http.StatusForbidden)
		default:
			r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
			mux.ServeHTTP(w, r)
		}
	})
}

// isHost reports whether that is where the page is. Browsers leave http's own port out.
func (d *dashboard) isHost(host string) bool {
	return host == d.host || host == strings.TrimSuffix(d.host, ":80")
}

// known serves only whoever has a secret.
func (d *dashboard) known(serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || !d.knows(secret) {
			http.Error(w, "locked", http.StatusUnauthorized)
			return
		}
		serve(w, r)
	}
}

func (d *dashboard) serveTicket(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Ticket string `json:"ticket"`
	}
	if json.NewDecoder(r.Body).Decode(&body) != nil {
		http.Error(w, "no ticket", http.StatusBadRequest)
		return
	}
	secret, ok := d.trade(body.Ticket)
	if !ok {
		http.Error(w, "this ticket opens nothing", http.StatusUnauthorized)
		return
	}
	answerJSON(w, map[string]string{"secret": secret})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// serveEvents streams what the page shows, as server-sent events.
func (d *dashboard) serveEvents(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.watchers++
	d.mu.Unlock()
	defer d.left()
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	secret := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	var last []byte
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for spoke := time.Now(); d.knows(secret); {
		now, err := json.Marshal(d.snapshot())
		if err != nil {
			return
		}
		out.SetWriteDeadline(time.Now().Add(patience))
		switch {
		case !bytes.Equal(now, last):
			fmt.Fprintf(w, "data: %s\n\n", now)
			last, spoke = now, time.Now()
		case time.Since(spoke) > 15*time.Second:
			io.WriteString(w, ":\n\n") // the page learns that it is not alone
			spoke = time.Now()
		}
		if out.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// left notes that a page has gone, and prints a way back if none is left.
func (d *dashboard) left() {
	d.mu.Lock()
	d.watchers--
	gone := d.watchers == 0
	d.mu.Unlock()
	if !gone {
		return
	}
	d.work.Go(func() {
		select {
		case <-time.After(reloadFor):
		case <-d.ctx.Done():
			return
		}
		d.mu.Lock()
		gone := d.watchers == 0 && d.ticket == ""
		d.mu.Unlock()
		if gone {
			d.invite()
		}
	})
}

// open opens the stores, and finds where logins can begin.
func (d *dashboard) open(ctx context.Context) error {
	stores, err := d.allStores(ctx, d.found)
	if len(stores) == 0 {
		return err
	}
	d.stores = stores
	d.warn(err)
	for _, store := range stores {
		if _, err := store.keys(ctx); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	for _, b := range brokers() {
		u, err := d.usualOf(ctx, b)
		if err != nil {
			d.others = append(d.others, other{b.name, err.Error()})
			continue
		}
		d.usual = append(d.usual, u)
	}
	return nil
}

func (d *dashboard) usualOf(ctx context.Context, b broker) (u usual, err error) {
	// What exists no more comes first: there is no use in setting what it needs.
	if err = d.ended(ctx, b); err != nil {
		return u, err
	}
	if u.provider, _, err = d.found.provider(ctx, b, nil); err != nil {
		return u, err
	}
	u.store, err = d.openStore(ctx, d.found, b.name)
	return u, err
}

func (d *dashboard) warn(err error) {
	if err != nil {
		fmt.Fprintf(d.err, "brokerauth: warning: %v\n", err)
	}
}

// look looks at the stores, if it is time to, for all pages at once: so no page's end cuts it short.
func (d *dashboard) look() error {
	d.looking.Lock()
	defer d.looking.Unlock()
	d.mu.Lock()
	// A store that is slow, or asks a person, is left in peace.
	due := time.Since(d.lookedAt) >= max(lookEvery, 20*d.lookTook)
	err := d.lookErr
	d.mu.Unlock()
	if !due {
		return err
	}
	began := time.Now()
	err = d.lookNow()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lookedAt, d.lookTook, d.lookErr = time.Now(), time.Since(began), err
	return err
}

func (d *dashboard) lookNow() error {
	var faults []error
	seen := make(map[string]*card)
	see := func(store keptStore, key brokerauth.Key, provider func() brokerauth.Provider) *card {
		id := key.String() + " " + store.name
		d.mu.Lock()
		c := d.cards[id]
		d.mu.Unlock()
		if c == nil {
			c = &card{id: id, key: key, store: store, session: d.session(provider(), store, key.Profile)}
		}
		seen[id] = c
		return c
	}
	listed := make(map[*card]bool)
	away := make(map[string]bool)
	for _, store := range d.stores {
		ctx, cancel := context.WithTimeout(d.ctx, lookFor)
		defer cancel()
		keys, err := store.keys(ctx)
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			faults = append(faults, err)
			away[store.name] = true
		}
		for _, key := range keys {
			if !d.named || key.Profile == d.profile {
				listed[see(store, key, func() brokerauth.Provider { return d.providerOf(ctx, key, d.found, keys) })] = true
			}
		}
	}
	for _, u := range d.usual {
		info := u.provider.Info()
		see(u.store, brokerauth.Key{Provider: info.Name, Identity: info.Identity, Profile: d.profile}, func() brokerauth.Provider { return u.provider })
	}
	d.mu.Lock()
	for id, c := range d.cards {
		if away[c.store.name] {
			seen[id] = c // its session may hold a token that could not be saved
		}
	}
	d.mu.Unlock()
	for _, c := range seen {
		ctx, cancel := context.WithTimeout(d.ctx, lookFor)
		st, err := c.session.Status(ctx)
		cancel()
		d.mu.Lock()
		c.status, c.err, c.stored = st, err, listed[c] || st.KeptAs != ""
		c.status.LoggedIn = st.LoggedIn || mints(c.session.Provider) // whether or not a first token is stored
		d.mu.Unlock()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, c := range d.cards {
		if seen[id] == nil && (c.busy != "" || c.cancel != nil) {
			seen[id] = c
		}
	}
	d.cards = seen
	return errors.Join(faults...)
}

// soon has the next look be the very next.
func (d *dashboard) soon() {
	d.mu.Lock()
	d.lookedAt = time.Time{}
	d.mu.Unlock()
}

// cardView is a card as the page gets it.
type cardView struct {
	ID       string   `json:"id"`
	Broker   string   `json:"broker"`
	Profile  string   `json:"profile"`
	Identity string   `json:"identity,omitempty"` // if there are several of the same broker and profile
	State    string   `json:"state"`              // one word
	Access   span     `json:"access"`
	Login    span     `json:"login"`
	Endless  bool     `json:"endless"` // the login has no end
	In       bool     `json:"in"`
	What     string   `json:"what,omitempty"`   // went wrong
	Remedy   string   `json:"remedy,omitempty"` // for it
	Note     string   `json:"note,omitempty"`
	Store    string   `json:"store"` // that keeps it, or would
	Grant    bool     `json:"grant"` // logging in is typing a grant
	Aside    bool     `json:"aside"` // nobody seems to want this login
	Can      []string `json:"can"`
}

// span is a clock's life. Zero times are unknown.
type span struct {
	From  time.Time `json:"from,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

type view struct {
	Fault  string     `json:"fault,omitempty"`
	Cards  []cardView `json:"cards"`
	Others []other    `json:"others"`
}

// snapshot is what the page shows now.
func (d *dashboard) snapshot() view {
	v := view{Cards: []cardView{}, Others: []other{}}
	if err := d.look(); err != nil {
		v.Fault = err.Error()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	alike, stored := make(map[brokerauth.Key]int), make(map[string]bool)
	for _, c := range d.cards {
		alike[brokerauth.Key{Provider: c.key.Provider, Profile: c.key.Profile}]++
		stored[c.key.Provider] = true
	}
	for _, c := range d.cards {
		s := c.view()
		if alike[brokerauth.Key{Provider: c.key.Provider, Profile: c.key.Profile}] > 1 {
			s.Identity = shortened(c.key)
		}
		v.Cards = append(v.Cards, s)
	}
	for _, o := range d.others {
		if !stored[o.Broker] {
			v.Others = append(v.Others, o)
		}
	}
	// Logins first; an unused place for one last.
	slices.SortFunc(v.Cards, func(a, b cardView) int {
		if a.In != b.In {
			return map[bool]int{true: -1, false: 1}[a.In]
		}
		return strings.Compare(a.ID, b.ID)
	})
	return v
}

func (c *card) view() cardView {
	st, key := c.status, c.key
	b, _ := findBroker(key.Provider)
	s := cardView{
		ID: c.id, Broker: key.Provider, Profile: key.Profile, In: st.LoggedIn, Endless: b.endless, Store: c.store.name, Note: c.note,
		Access: span{st.AccessIssuedAt, st.AccessExpiresAt}, Login: span{st.LoggedInAt, st.LoginBy}, State: c.state(), Can: []string{},
	}
	_, s.Grant = c.session.Provider.(keptGrant)
	err := c.failed
	for _, other := range []error{c.err, st.SaveError, st.LastError} {
		if err == nil {
			err = other
		}
	}
	s.Aside = s.Grant && !c.stored && err == nil
	s.What, s.Remedy = inTwo(err)
	stored, unset := c.session.Provider.(onlyStored)
	switch {
	case stored.other:
		s.Note = "This login is of another app or base URL than the settings name."
	case stored.fault != nil:
		s.Note = "The settings of this login's app cannot work, so it can only be looked at: " + forPeople(stored.fault)
	case unset:
		s.Note = "The settings of this login's app are not set here, so it can only be looked at."
	case st.MovedTo != "":
		s.Note = "The login was moved to " + st.MovedTo + "."
	}
	switch {
	case c.cancel != nil:
		s.Can = []string{"cancel"}
	case c.busy != "":
	default:
		if !unset {
			s.Can = append(s.Can, "login")
		}
		if !unset && st.LoggedIn {
			s.Can = append(s.Can, "refresh")
		}
		if c.stored {
			s.Can = append(s.Can, "logout")
		}
	}
	return s
}

// state is a login's in one word.
func (c *card) state() string {
	st, now := c.status, time.Now()
	switch {
	case c.cancel != nil:
		return "waiting"
	case c.busy != "":
		return c.busy
	case c.err != nil:
		return "unknown"
	case st.MovedTo != "":
		return "moved"
	case !st.LoggedIn:
		return "out"
	case errors.Is(st.LastError, brokerauth.ErrLoginRequired):
		return "ended"
	case errors.Is(st.LastError, brokerauth.ErrRejected):
		return "refused"
	case !st.Refreshing.IsZero() && now.Sub(st.Refreshing) < time.Minute:
		return "refreshing"
	case st.SaveError != nil:
		return "unsaved"
	case st.LastError != nil:
		return "retrying"
	case !st.LoginBy.IsZero() && now.After(st.LoginBy):
		return "overdue"
	case !st.LoginBy.IsZero() && st.LoginBy.Sub(now) < 24*time.Hour:
		return "due"
	case st.AccessExpiresAt.IsZero() && st.AccessIssuedAt.IsZero(), !st.AccessExpiresAt.IsZero() && now.After(st.AccessExpiresAt):
		return "idle" // the next use renews it
	}
	return "live"
}

// inTwo is an error in two parts: what happened, and what to do.
func inTwo(err error) (what, remedy string) {
	if err == nil {
		return "", ""
	}
	if e, ok := errors.AsType[*brokerauth.Error](err); ok && e.Hint != "" {
		bare := *e
		bare.Hint = ""
		return printableText(bare.Error()), printableText(e.Hint)
	}
	return printableText(forPeople(err)), ""
}

// request is what a button sends.
type request struct {
	ID     string `json:"id"`
	Secret string `json:"secret"` // of a grant
	Grant  string `json:"grant"`
}

var errBusy = errors.New("something is under way at this login: wait for it")

// button serves one kind of button.
func (d *dashboard) button(do func(context.Context, *card, request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req request
		if json.NewDecoder(r.Body).Decode(&req) != nil {
			http.Error(w, "no request", http.StatusBadRequest)
			return
		}
		d.mu.Lock()
		c := d.cards[req.ID]
		d.mu.Unlock()
		if c == nil {
			http.Error(w, "no such login", http.StatusNotFound)
			return
		}
		answer, err := do(d.ctx, c, req)
		d.soon()
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience))
		if err != nil {
			what, remedy := inTwo(err)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(map[string]string{"what": what, "remedy": remedy})
			return
		}
		answerJSON(w, answer)
	}
}

// occupy has c do one thing at a time.
func (d *dashboard) occupy(c *card, what string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.busy != "" || c.cancel != nil {
		return false
	}
	c.busy, c.failed, c.note = what, nil, ""
	return true
}

func (d *dashboard) vacate(c *card, err error) {
	d.mu.Lock()
	c.busy, c.cancel, c.note, c.failed = "", nil, "", err
	d.mu.Unlock()
	d.soon()
}

// during runs one thing that asks no person.
func (d *dashboard) during(c *card, what string, do func() error) (any, error) {
	if !d.occupy(c, what) {
		return nil, errBusy
	}
	d.work.Add(1)
	defer d.work.Done()
	err := do()
	d.vacate(c, err)
	return struct{}{}, err
}

func (d *dashboard) renew(ctx context.Context, c *card, _ request) (any, error) {
	return d.during(c, "refreshing", func() error {
		_, err := c.session.Refresh(ctx, nil)
		return err
	})
}

func (d *dashboard) logOut(ctx context.Context, c *card, _ request) (any, error) {
	return d.during(c, "leaving", func() error { return c.session.Logout(ctx) })
}

func (d *dashboard) giveUp(_ context.Context, c *card, _ request) (any, error) {
	d.mu.Lock()
	cancel := c.cancel
	d.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	return struct{}{}, nil
}

// logIn begins a login and returns the address to open, if there is one.
func (d *dashboard) logIn(ctx context.Context, c *card, req request) (any, error) {
	switch p := c.session.Provider.(type) {
	case brokerauth.LoginProvider:
	case keptGrant:
		return d.during(c, "proving", func() error {
			if req.Secret == "" || req.Grant == "" {
				return errors.New("type both the client secret and the refresh token")
			}
			return d.noted(c, saveGrant(ctx, c.session, &brokerauth.Token{RefreshToken: strings.TrimSpace(req.Grant),
				Extra: map[string]string{clientSecret: strings.TrimSpace(req.Secret)}}))
		})
	case onlyStored:
		if p.fault != nil {
			return nil, p.fault
		}
		return nil, fmt.Errorf("%s: the settings of this login's app are not set here", p.key.Provider)
	default: // the grant is in the settings
		return d.renew(ctx, c, req)
	}
	if !d.occupy(c, "waiting") {
		return nil, errBusy
	}
	ctx, cancel := context.WithCancel(ctx)
	opened, over := make(chan string, 1), make(chan error, 1)
	flow := flows.Browser(&flows.Options{
		In: new(bytes.Buffer), Out: io.Discard, // the terminal is not where this person is
		Open: func(_ context.Context, address string) error {
			opened <- address
			return nil
		},
	})
	back := false
	d.work.Go(func() {
		err := c.session.Login(ctx, func(ctx context.Context, l *brokerauth.Login, finish func(context.Context, string) error) error {
			d.mu.Lock()
			c.cancel, c.note = cancel, waitNote(l)
			d.mu.Unlock()
			return flow(ctx, l, func(ctx context.Context, callback string) error {
				back = true
				return finish(ctx, callback)
			})
		})
		if !back {
			err = advised(err, false)
		}
		cancelled := ctx.Err() != nil
		cancel()
		err = d.noted(c, err)
		if cancelled && errors.Is(err, context.Canceled) {
			err = nil // by the person
		}
		over <- err
		d.vacate(c, err)
	})
	select {
	case address := <-opened:
		return map[string]string{"open": address}, nil
	case err := <-over:
		if err == nil {
			err = errors.New("the login ended before it began")
		}
		return nil, err
	}
}

// noted has later commands find a login that went well.
func (d *dashboard) noted(c *card, err error) error {
	if err == nil {
		d.remember(context.WithoutCancel(d.ctx), c.key, c.store)
	}
	return err
}

// waitNote tells whoever logs in what to expect.
func waitNote(l *brokerauth.Login) string {
	note := "Go on in the page that opened."
	if strings.HasPrefix(l.RedirectURL, "https://") {
		origin, _, _ := strings.Cut(strings.TrimPrefix(l.RedirectURL, "https://"), "/")
		note += " The browser may warn of this computer's own certificate: go on only if the address starts with https://" + origin + "/"
	}
	return note
}

// close ends all that is under way, and carries what was sent to a broker to its save.
func (d *dashboard) close(err error) error {
	d.mu.Lock()
	for _, c := range d.cards {
		if c.cancel != nil {
			c.cancel()
		}
	}
	cards := d.cards
	d.mu.Unlock()
	for _, c := range cards {
		err = closed(c.session, err)
	}
	d.work.Wait()
	return err
}
