package brokerauth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"
)

const (
	tokenTimeout = 20 * time.Second             // of one call to a broker's token endpoint
	claimLife    = tokenTimeout + 5*time.Second // how long a waiter sees one claim before it is void
	storeTimeout = 10 * time.Second             // of a write that must not be cut short by a caller's context
	probeAfter   = 6 * time.Hour                // how long a final refusal is believed
	firstBackoff = 5 * time.Second              // after the first passing failure; each further one waits four times as long
	longestRetry = 24 * time.Hour               // the most of a Retry-After that is believed
	youngest     = time.Minute                  // an access token younger than this is not renewed for a 401
	oldClaim     = time.Hour                    // another host's claim that old by its own word is void, however clocks differ
)

// refresh is one flight's work.
type refresh struct {
	*Session
	key     Key
	info    Info
	want    want
	waiting context.Context // ends when nobody waits any more: until a request is sent
	base    context.Context // never ends: from then on
	began   time.Time
	epoch   int
	machine string
	claimed time.Time // when the claim may first have been seen
	lost    []byte    // the record over which a claim was not taken,
	losses  int       // so many times in a row
	events  []Event   // told when the flight is over, so that an observer may call back
}

// run gets a token that is wanted: from the record if somebody else has saved one, else from the broker.
func (r *refresh) run() (*Token, error) {
	event, err := r.saveUnsaved(r.base)
	if err != nil {
		// What this process holds is newer than the record, so the record is no use until the store is well.
		if t := r.inHand(); t != nil {
			return t, nil
		}
		return nil, err
	}
	if event != nil {
		r.tell(*event)
	}
	poll := poll{began: r.began}
	for {
		raw, rec, err := r.read()
		if err != nil {
			return nil, r.orClosed(err)
		}
		now := time.Now()
		v := r.verdict(rec)
		if t := r.adoptable(rec, v, now); t != nil {
			r.adopt(t)
			return t, nil
		}
		if !rec.hasToken() {
			if err := r.absent(rec); err != nil {
				return nil, err
			}
		} else if r.want.person && r.want.refused == nil {
			r.want.refused = rec.token // so that what somebody else saves from here on will do
		}
		if v != nil && !r.want.person && r.stands(v, now) {
			return nil, r.refuse(v.err(r.info.Name, now), v, now)
		}
		if err := r.forcible(rec, now); err != nil {
			return nil, err
		}
		if rec != nil && rec.claim != nil && !r.void(rec.claim, now) {
			if t := r.inHand(); t != nil {
				return t, nil
			}
			if err := poll.wait(r.waiting); err != nil {
				return nil, r.orClosed(err)
			}
			continue
		}
		claimed, mine, err := r.claim(raw, rec)
		if err != nil {
			return nil, err
		}
		if mine == nil { // somebody else was faster
			if err := poll.wait(r.waiting); err != nil {
				return nil, r.orClosed(err)
			}
			continue
		}
		if t, again, err := r.ask(claimed, mine); !again {
			return t, err
		}
	}
}

// absent says why there is no token, unless the broker can mint a first one.
func (r *refresh) absent(rec *record) error {
	e := &Error{Provider: r.info.Name, Op: "refresh", Kind: ErrLoginRequired,
		Hint: fmt.Sprintf("nobody is logged in as profile %q: log in first", r.key.Profile)}
	if rec != nil && rec.moved != nil {
		e.Hint = fmt.Sprintf("this login was moved to %s on %s: use it there, or log in here again",
			rec.moved.To, rec.moved.At.Local().Format(time.DateTime))
		return e
	}
	if _, ok := r.Provider.(LoginProvider); !ok {
		return nil
	}
	// It needs no broker to say that there is nothing to renew, and may know that no login would help.
	if _, err := r.Provider.Refresh(r.waiting, nil); errors.Is(err, ErrRejected) {
		return asError(r.info.Name, "refresh", err)
	}
	return e
}

// claimToken claims the record once nobody else does, for as long as it takes to hand the token over.
func (r *refresh) claimToken() ([]byte, *record, error) {
	poll := poll{began: r.began}
	for {
		raw, rec, err := r.read()
		if err != nil {
			return nil, nil, err
		}
		if !rec.hasToken() {
			return nil, nil, cmp.Or(r.absent(rec), error(&Error{Provider: r.info.Name, Op: "refresh", Kind: ErrLoginRequired,
				Hint: "nothing is stored yet"}))
		}
		if rec.claim == nil || r.void(rec.claim, time.Now()) {
			if claimed, mine, err := r.claim(raw, rec); err != nil || mine != nil {
				return claimed, mine, err
			}
		}
		if err := poll.wait(r.waiting); err != nil {
			return nil, nil, err
		}
	}
}

// inHand returns the valid token at hand, if any will do.
func (r *refresh) inHand() *Token {
	if p := r.current.Load(); r.want.refused == nil && !r.want.person && p != nil && !p.dead.passed(time.Now()) {
		return p.token
	}
	return nil
}

func (r *refresh) tell(e Event) {
	e.Key = r.key
	r.events = append(r.events, e)
}

// load reads and decodes the record at key. A missing one is nil, nil, nil.
func (s *Session) load(ctx context.Context, key Key) ([]byte, *record, error) {
	raw, err := s.Store.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: loading the login: %w", key.Provider, err)
	}
	rec, err := decodeRecord(raw)
	if err != nil {
		hint := "delete it and log in anew"
		if errors.Is(err, errNewerRecord) {
			hint = "upgrade this program"
		} else if _, ok := s.Store.(asider); ok {
			hint = "log in anew, which sets it aside"
		}
		return raw, nil, fmt.Errorf("%s: the login at %s is %w: %s", key.Provider, s.where(key), err, hint)
	}
	return raw, rec, nil
}

// where says where the record is kept.
func (s *Session) where(key Key) string {
	if store, ok := s.Store.(interface{ Where(Key) string }); ok {
		return store.Where(key)
	}
	return key.String()
}

// adoptable returns the stored token if it is what is wanted. One that is merely valid is published for those who can
// use it, and not returned.
func (r *refresh) adoptable(rec *record, v *verdict, now time.Time) *Token {
	if !rec.hasToken() || v != nil && v.final() && v.AccessToo {
		return nil
	}
	t := rec.token
	p := r.published(t, r.info, now)
	fresh := !p.renew.passed(now)
	switch {
	case r.want.refused != nil:
		fresh = fresh && t.AccessToken != r.want.refused.AccessToken
	case r.want.person:
		fresh = false
	case r.want.ahead != nil:
		fresh = fresh && t.AccessToken != r.want.ahead.AccessToken
	case !fresh && !p.dead.passed(now):
		if held := r.current.Load(); held == nil || held.dead.passed(now) {
			r.publish(t, r.epoch)
		}
	}
	if !fresh {
		return nil
	}
	return t
}

// adopt publishes a token that is in the record.
func (r *refresh) adopt(t *Token) {
	held := r.current.Load()
	r.publish(t, r.epoch)
	if held == nil || held.token.AccessToken != t.AccessToken {
		r.tell(Event{Kind: "adopted", Token: fingerprint(t.AccessToken), Took: time.Since(r.began)})
	}
}

// verdict returns what the broker refused last: as the record has it, or as it should.
func (r *refresh) verdict(rec *record) *verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	stored := rec.verdictFor(r.info.Settings)
	held := rec.with(func(c *record) { c.verdict = r.held }).verdictFor(r.info.Settings)
	if held != nil && (stored == nil || held.At.After(stored.At)) && !(rec.hasToken() && rec.token.Issued.After(held.At)) {
		return held
	}
	return stored
}

// stands reports whether an earlier refusal still counts.
func (r *refresh) stands(v *verdict, now time.Time) bool {
	age := now.Sub(v.At)
	if v.final() {
		return age.Abs() < probeAfter
	}
	wait := v.wait()
	if age >= 0 {
		return age < wait
	}
	if age < -wrongClock {
		return false
	}
	// The host that wrote it is ahead of this one's clock, so the wait is counted from when it was first seen here.
	id := v.Token + v.At.String()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.verdictSeen != id {
		r.verdictSeen, r.verdictSince = id, now
	}
	return now.Sub(r.verdictSince) < wait
}

// refuse puts the next try off to when the refusal ends, and returns err.
func (r *refresh) refuse(err *Error, v *verdict, now time.Time) error {
	switch {
	case !v.final():
		r.putOff(max(time.Second, v.Until.Sub(now)))
	case v.AccessToo:
		r.drop(r.want.refused)
	default:
		r.putOff(firstBackoff) // a login elsewhere ends it, so the record is looked at now and then
	}
	return err
}

// forcible reports why a refused request is no reason to renew the stored token, if so.
func (r *refresh) forcible(rec *record, now time.Time) error {
	refused := r.want.refused
	if refused == nil || r.want.person || r.want.short || !rec.hasToken() || rec.token.AccessToken != refused.AccessToken {
		return nil
	}
	life := cmp.Or(rec.token.life(), time.Hour)
	e := &Error{Provider: r.info.Name, Op: "refresh", Kind: ErrUnavailable}
	if age, least := now.Sub(rec.token.Issued).Abs(), min(youngest, life/2); age < least {
		e.RetryAfter = least - age
		e.Hint = "the API refuses an access token that was issued just now, so another would not help: " +
			"look for what else it refuses, such as an API product that the app lacks"
		return e
	}
	recent := lastHour(rec.forced, now)
	if most := max(2, int(2*time.Hour/life)); len(recent) >= most {
		e.RetryAfter = time.Hour - now.Sub(recent[0])
		e.Hint = "the API has refused one new access token after another: another would not help"
		return e
	}
	return nil
}

func lastHour(times []time.Time, now time.Time) []time.Time {
	return slices.DeleteFunc(slices.Clone(times), func(t time.Time) bool { return now.Sub(t).Abs() >= time.Hour })
}

// read loads the record. A claim that was seen does not age while the store cannot be reached, or is busy: where this
// process waits for it, the holder of the claim may wait to save what the broker has answered.
func (r *refresh) read() ([]byte, *record, error) {
	asked := time.Now()
	raw, rec, err := r.load(r.waiting, r.key)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && r.waiting.Err() == nil {
		r.claimSeen = ""
	} else {
		r.claimSince = r.claimSince.Add(time.Since(asked))
	}
	return raw, rec, err
}

// void reports whether nobody stands behind the claim any more.
func (r *refresh) void(c *claim, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claimSeen != c.ID {
		r.claimSeen, r.claimSince = c.ID, now
	}
	if r.orphan == c.ID || now.Sub(r.claimSince) >= claimLife {
		return true
	}
	if c.Machine != "" && c.Machine == r.machine {
		return dead(c.PID) // while it lives, no clock is believed: this machine's may just have been set
	}
	return now.Sub(c.Since).Abs() >= oldClaim
}

// poll is how a refresh waits for somebody else's claim: 1 ms doubling to 10 ms, and 250 ms after a second.
type poll struct {
	began time.Time
	delay time.Duration
}

func (p *poll) wait(ctx context.Context) error {
	p.delay = min(max(time.Millisecond, 2*p.delay), 10*time.Millisecond)
	if time.Since(p.began) > time.Second {
		p.delay = 250 * time.Millisecond
	}
	return sleep(ctx, p.delay)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// claim writes into the record that this process is about to ask the broker. It returns the new record, or nil if the
// old one had changed meanwhile.
func (r *refresh) claim(raw []byte, rec *record) ([]byte, *record, error) {
	ctx, cancel := context.WithTimeout(r.base, storeTimeout)
	defer cancel()
	// A slow store shows the claim to others long before it says so here.
	r.claimed = time.Now()
	now := r.claimed.Round(0).UTC()
	r.mu.Lock()
	orphan := r.orphan
	r.mu.Unlock()
	mine := rec.with(func(c *record) {
		if c.claim != nil && c.claim.ID != orphan && c.doubt.IsZero() {
			c.doubt = c.claim.Since // its holder may have got an answer that it could not save
		}
		c.claim = &claim{ID: rand.Text(), Since: now, Machine: r.machine, PID: os.Getpid()}
		if c.forced = lastHour(c.forced, now); r.want.refused != nil && !r.want.person && !r.want.short {
			c.forced = append(c.forced, now)
		}
	})
	claimed, err := mine.encode(r.key.Provider)
	if err != nil {
		return nil, nil, err
	}
	swapped, err := r.Store.CompareAndSwap(ctx, r.key, raw, claimed)
	if err != nil {
		// The outcome is unknown, and the request must not be sent unless the claim is durable.
		if swapped = r.durable(r.base, r.key, claimed); !swapped {
			r.mu.Lock()
			r.orphan = mine.claim.ID // should it have been taken after all
			r.mu.Unlock()
			return nil, nil, fmt.Errorf("%s: the broker was not asked, because the store cannot save its answer: %w", r.key.Provider, err)
		}
	}
	switch {
	case swapped:
		return claimed, mine, nil
	case !bytes.Equal(r.lost, raw):
		r.lost, r.losses = raw, 0
	case r.losses == 5:
		return nil, nil, fmt.Errorf("%s: the broker was not asked, because the store does not know its own record again: %w",
			r.key.Provider, ErrUnavailable)
	}
	r.losses++
	return nil, nil, nil
}

// ask asks the broker under the claim in mine, and saves what it says. again: the record has changed meanwhile, so that
// it must be looked at anew. Between sending and saving there is no event, log line or other call.
func (r *refresh) ask(claimed []byte, mine *record) (t *Token, again bool, err error) {
	// Whoever waits holds the claim void a while after the request has ended, counted from when they may have seen it.
	ctx, cancel := context.WithDeadline(r.base, r.claimed.Add(tokenTimeout))
	var sent time.Time
	if err = ctx.Err(); err == nil {
		sent = time.Now()
		t, err = r.Provider.Refresh(ctx, mine.token)
	}
	cancel()
	if err == nil {
		err = t.fault()
	}
	if err != nil {
		e := asError(r.info.Name, "refresh", err)
		e.Kind = cmp.Or(e.Kind, ErrUnavailable) // what is not known is passing: nobody is sent to log in by guess
		return r.fail(claimed, mine, e, sent)
	}
	u := &unsaved{key: r.key, raw: claimed, rec: mine, old: mine.token, token: utc(t), epoch: r.epoch}
	event := Event{Kind: "refreshed", Token: fingerprint(t.AccessToken)}
	switch saved, err := r.save(r.base, u); {
	case err != nil:
		r.keep(u, err)
		event.Kind, event.Err = "unsaved", err
	case !saved:
		return nil, true, nil // there is a newer login, or none any more
	default:
		r.mu.Lock()
		r.held = nil
		r.mu.Unlock()
		r.publish(u.token, r.epoch)
	}
	event.Took = time.Since(r.began)
	r.tell(event)
	return u.token, false, nil
}

// fail records that the broker refused to refresh, or could not be asked. sent is zero if the store was so slow that it
// was not.
func (r *refresh) fail(claimed []byte, mine *record, e *Error, sent time.Time) (*Token, bool, error) {
	ctx, cancel := context.WithTimeout(r.base, storeTimeout)
	defer cancel()
	now := time.Now()
	doubt := mine.doubt
	if e.Kind == ErrLoginRequired && !doubt.IsZero() && !mine.loginOver(now) {
		e.Hint = fmt.Sprintf("the answer to a refresh sent at %s was never received or saved, so the refresh token "+
			"may have been rotated then; log in again", doubt.Local().Format("15:04:05 MST on Mon 2 Jan"))
	}
	v := newVerdict(e, mine.refreshToken(), r.info.Settings, now)
	if v.final() {
		v.AccessToo = r.want.refused != nil && !r.want.person && !r.want.short
	} else {
		v.Failures = 1
		if before := mine.verdictFor(r.info.Settings); before != nil && !before.final() {
			v.Failures = before.Failures + 1
		}
		v.Until = v.At.Add(backoff(v.Failures, mine.token, e.RetryAfter))
		if doubt.IsZero() && !sent.IsZero() && ambiguous(e) {
			doubt = sent
		}
	}
	var (
		swapped bool
		err     error
	)
	for {
		next, encodeErr := mine.with(func(c *record) { c.claim, c.verdict, c.doubt = nil, v, doubt.Round(0).UTC() }).encode(r.key.Provider)
		if encodeErr != nil {
			return nil, false, encodeErr
		}
		if swapped, err = r.Store.CompareAndSwap(ctx, r.key, claimed, next); swapped || err != nil {
			break
		}
		// What else stands in the record may have changed under the claim.
		raw, rec, loadErr := r.load(ctx, r.key)
		if loadErr != nil || rec == nil || rec.claim == nil || rec.claim.ID != mine.claim.ID {
			break
		}
		claimed, mine = raw, rec
	}
	if err != nil {
		r.mu.Lock()
		r.orphan, r.held = mine.claim.ID, v
		r.mu.Unlock()
	} else if !swapped {
		return nil, true, nil // somebody logged in, or took the claim over: what they were told counts
	}
	r.mu.Lock()
	r.failures++
	r.mu.Unlock()
	r.tell(Event{Kind: "failed", Took: now.Sub(r.claimed), Err: e})
	e.RetryAfter = v.err(r.info.Name, now).RetryAfter
	return nil, false, r.refuse(e, v, now)
}

// asError makes an *Error of whatever a Provider returned.
func asError(provider, op string, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		c := *e
		c.Kind = kindOf(err)
		return &c
	}
	// Its text has the address, and the address may have secrets.
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	return &Error{Provider: provider, Op: op, Kind: kindOf(err), Err: err}
}

func kindOf(err error) error {
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return nil
}

// ambiguous reports whether the broker may have answered a request whose answer never came.
func ambiguous(e *Error) bool {
	if op := (*net.OpError)(nil); errors.As(e.Err, &op) && op.Op == "dial" {
		return false
	}
	if dns := (*net.DNSError)(nil); errors.As(e.Err, &dns) {
		return false
	}
	switch {
	case e.Status >= 400 && e.Status < 500, e.Status == http.StatusServiceUnavailable:
		return false
	}
	return true
}

// backoff is how long to wait after so many failures in a row: 5 s, then four times as long each, up to the access
// token's life or half an hour, and up to a quarter more so that hosts do not come back together. At the most 8 tries an hour and, for
// a token of half an hour, 60 a day.
func backoff(failures int, t *Token, retryAfter time.Duration) time.Duration {
	most := 30 * time.Minute
	if t != nil && t.life() > 0 {
		most = min(most, max(firstBackoff, t.life()))
	}
	d := firstBackoff
	for i := 1; i < failures && d < most; i++ {
		d *= 4
	}
	d = min(d, most)
	d += time.Duration(mathrand.Int64N(int64(d)/4 + 1))
	return max(d, min(retryAfter, longestRetry))
}

// wrongClock is more than hosts' clocks may differ.
const wrongClock = 30 * time.Minute

// laterLogin reports whether a was consented to after b. A consent in the future is a clock's mistake and counts for
// nothing.
func laterLogin(a, b *Token) bool {
	return a.LoggedInAt.After(b.LoggedInAt) && time.Until(a.LoggedInAt.Round(0)) < time.Minute
}

// unsaved is a token that a broker issued and the store has yet to take.
type unsaved struct {
	key   Key
	raw   []byte  // the record that it follows; nil: there was none
	rec   *record // the same, decoded
	old   *Token  // what it renews
	token *Token
	login bool // it renews nothing: somebody logged in
	epoch int
	aside error // what was moved out of its way, to be told once it is saved

	before time.Time // login: when the user had logged in before, however late the clock said that was
	stood  bool      // there was a record, so that none any more means a logout
	doubt  time.Time // it renews: somebody took the claim over, and spent the old refresh token once more

	retry time.Duration // how long saving was last put off
}

// replaces reports whether the token is newer than what rec holds. A refresh never revives a login that was ended.
func (u *unsaved) replaces(rec *record) bool {
	switch {
	case u.login && rec == nil:
		return !u.stood
	case u.login && rec.hasToken() && newerTokens(rec.token, u.token):
		return false // it was saved after all, and renewed since
	case u.login:
		return !rec.hasToken() || rec.token.LoggedInAt.Equal(u.before) || !laterLogin(rec.token, u.token)
	case rec == nil || u.old == nil || rec.token == nil:
		return rec != nil && u.old == rec.token
	}
	return rec.token.AccessToken == u.old.AccessToken && rec.token.RefreshToken == u.old.RefreshToken
}

var errUnsure = errors.New("the store shows it, but does not say that it is kept")

// save puts u's token in the place of the record that it follows, or of a later one that it is newer than. It reports
// false if another fact is newer, and tries a few times where the store fails.
func (s *Session) save(base context.Context, u *unsaved) (saved bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(base), storeTimeout)
	defer cancel()
	raw, rec := u.raw, u.rec
	for delay := 50 * time.Millisecond; ; {
		next, err := rec.withToken(u.token, u.login).with(func(c *record) { c.doubt = u.doubt }).encode(u.key.Provider)
		if err != nil {
			return false, err
		}
		saved, err := s.Store.CompareAndSwap(ctx, u.key, raw, next)
		if err == nil && saved {
			return true, nil
		}
		found, now, loadErr := s.load(ctx, u.key)
		if loadErr != nil && u.login {
			found, now, loadErr = s.setAside(ctx, u, loadErr)
		}
		if loadErr == nil {
			if bytes.Equal(found, next) {
				if s.durable(ctx, u.key, next) {
					return true, nil // it was taken after all
				}
			} else {
				u.stood = u.stood || found != nil
				if !u.replaces(now) {
					return false, nil
				}
				if !u.login && !now.doubt.Equal(rec.doubt) {
					u.doubt = now.doubt
				}
				raw, rec = found, now
				u.raw, u.rec = raw, rec
				if err == nil && ctx.Err() == nil {
					continue
				}
			}
		}
		if err = cmp.Or(err, loadErr, ctx.Err(), errUnsure); delay > time.Second || sleep(ctx, delay) != nil {
			return false, fmt.Errorf("%s: the new token works in this program but could not be saved: %w", u.key.Provider, err)
		}
		delay *= 3
	}
}

// durable reports whether record stands at key and will go on to, after a swap whose outcome is unknown.
func (s *Session) durable(base context.Context, key Key, record []byte) bool {
	ctx, cancel := context.WithTimeout(base, storeTimeout)
	defer cancel()
	swapped, err := s.Store.CompareAndSwap(ctx, key, record, record)
	return err == nil && swapped
}

// keep makes an unsaved token work in this process, and has saving tried again.
func (s *Session) keep(u *unsaved, err error) {
	s.mu.Lock()
	// An old login's next token must not take the place of a new login.
	other := s.unsaved
	newer := other == nil || !other.login || u.login && !laterLogin(other.token, u.token)
	if s.epoch == u.epoch && newer {
		s.unsaved, s.saveErr = u, err
	}
	if u.rec != nil && u.rec.claim != nil {
		s.orphan = u.rec.claim.ID
	}
	s.saveLater()
	s.mu.Unlock()
	s.publish(u.token, u.epoch)
}

// saveLater has saving tried again although nobody may ask for a token: all others wait for it, until they take the claim
// for abandoned. s.mu is held.
func (s *Session) saveLater() {
	if s.closed || s.unsaved == nil || s.retry != nil {
		return
	}
	key, u := s.unsaved.key, s.unsaved
	u.retry = min(max(time.Second, 2*u.retry), claimLife/2)
	s.retry = time.AfterFunc(u.retry, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.retry = nil
		if s.closed || s.unsaved == nil {
			return
		}
		s.mu.Unlock()
		_, _, _ = s.ride(context.Background(), key, want{}) // which saves first
		s.mu.Lock()
		s.saveLater() // that one may have been under way already
	})
}

// saveUnsaved tries again to save a token that could not be saved, and returns the event to tell, if any.
func (s *Session) saveUnsaved(ctx context.Context) (*Event, error) {
	s.mu.Lock()
	kept := s.unsaved
	if kept == nil {
		s.mu.Unlock()
		return nil, nil
	}
	u := *kept // somebody else may be trying, too
	s.mu.Unlock()
	saved, err := s.save(ctx, &u)
	s.mu.Lock()
	loggedOut := s.epoch != u.epoch
	if s.unsaved == kept {
		if err != nil {
			s.unsaved = &u
			s.saveLater()
		} else {
			s.unsaved, s.saveErr = nil, nil
		}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if !saved {
		return nil, nil
	}
	if loggedOut { // between the last look and the swap
		return nil, s.unsave(ctx, &u)
	}
	s.publish(u.token, u.epoch)
	return &Event{Kind: "saved", Key: u.key, Token: fingerprint(u.token.AccessToken)}, nil
}

// unsave deletes u's token from the store, unless something else stands there by now.
func (s *Session) unsave(ctx context.Context, u *unsaved) error {
	raw, rec, err := s.load(ctx, u.key)
	if err == nil && rec.hasToken() && rec.token.AccessToken == u.token.AccessToken {
		_, err = s.Store.CompareAndSwap(ctx, u.key, raw, nil)
	}
	return err
}

// orClosed says that the Session was closed where that is why err came about.
func (s *Session) orClosed(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, context.Canceled) {
		return cmp.Or(s.check(), err)
	}
	return err
}
