package brokerauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// Session is one login at one broker, kept fresh in a store. Make one as a struct literal, set its fields before first
// use and do not copy it. Its methods are safe for concurrent use.
//
// Any number of Sessions, in any number of processes and on any number of hosts, may share one login: those whose
// Provider, Store and Profile agree see one refresh, one login and one logout.
type Session struct {
	Provider Provider
	Store    Store
	Profile  string      // the person or purpose; empty: "default"
	Observe  func(Event) // called synchronously, never under a lock; nil: what goes wrong is logged by slog

	current atomic.Pointer[published] // what Token returns without asking anybody

	mu        sync.Mutex
	closed    bool
	epoch     int                // counts logouts: a token from before one is not published after it
	flight    *flight            // the refresh under way, if any
	login     *call              // the Login under way, if any
	giveUp    func()             // ends its flow
	sent      map[[32]byte]*call // what was sent to the broker to complete a login, and what came of it
	finishing sync.WaitGroup     // completions and imports under way
	unsaved   *unsaved           // a token that the store has yet to take
	saveErr   error              // why it has not
	retry     *time.Timer        // when that is tried again, if nobody asks before; nil: it is under way, or there is none
	orphan    string             // a claim of ours that could not be taken back
	held      *verdict           // a refusal that could not be saved
	failures  int                // counts those that were told as events
	changed   chan struct{}      // closed when there is another token to look at; nil: nobody waits

	// What other hosts wrote is timed by this one's clock, from when it was first seen.
	claimSeen, verdictSeen   string
	claimSince, verdictSince time.Time
}

// published is a token as Token and Client hand it out.
type published struct {
	token  *Token
	header []string     // the Authorization header's value
	renew  deadline     // from then on it is renewed
	dead   deadline     // from then on it is of no use
	seen   atomic.Int64 // how long it was to renew when both clocks were looked at last, in nanoseconds; 0: they were not
}

// glance is how long Token takes the monotonic clock's word alone, which is half the price of both. A caller may be held up
// for longer between getting a token and sending it, so it makes no difference to it if the computer has slept, or its
// clock was set, in the meantime.
const glance = time.Millisecond

// deadline is a moment by both clocks. The monotonic one stands still while a laptop sleeps, and the wall clock can be
// set back: whichever says so first is believed.
type deadline struct {
	at   time.Time // with its monotonic reading
	wall int64     // nanoseconds since 1970
}

func in(now time.Time, d time.Duration) deadline {
	at := now.Add(min(d, never))
	return deadline{at, at.UnixNano()}
}

func (d *deadline) passed(now time.Time) bool { return !now.Before(d.at) || now.UnixNano() >= d.wall }

// left is how long it is to the moment, by the clock that says the sooner.
func (d *deadline) left(now time.Time) time.Duration {
	return min(d.at.Sub(now), time.Duration(d.wall-now.UnixNano()))
}

// never is far enough away for a token that does not expire.
const never = math.MaxInt64 / 4

func newPublished(t *Token, info Info, now time.Time) *published {
	p := &published{token: t, header: []string{t.header()}, renew: in(now, never), dead: in(now, never)}
	if !t.Expiry.IsZero() {
		left := t.left(now)
		p.renew, p.dead = in(now, left-t.margin(info)), in(now, left)
	}
	return p
}

// published is t as Token is to hand it out. A token that is at hand already lives no longer for being loaded again: only
// the monotonic clock of when it came knows whether the wall clock was set back since.
func (s *Session) published(t *Token, info Info, now time.Time) *published {
	p, held := newPublished(t, info, now), s.current.Load()
	if held == nil || held.token.AccessToken != t.AccessToken || !held.dead.at.Before(p.dead.at) {
		return p
	}
	p.dead.at, p.renew.at = held.dead.at, held.dead.at.Add(-t.margin(info))
	return p
}

// call is a piece of work that several callers may wait for.
type call struct {
	done chan struct{}
	err  error
}

// flight is one refresh, and whoever waits for it.
type flight struct {
	done    chan struct{}
	want    want
	waiters int
	cancel  context.CancelFunc // ends waiting for others; a request already sent is carried to its save
	token   *Token
	err     error
	left    bool // everybody had left it before it was over
}

// want says why a token is wanted.
type want struct {
	refused *Token // a token issued after this one; nil: any that is fresh
	short   bool   // no API has refused it: it only has too little time left
	ahead   *Token // any but this one, which is still fresh; nil: that too
	person  bool   // a person asks: whatever is stored is renewed, and no earlier refusal counts
}

// Token returns a fresh access token. While the one at hand is fresh it costs a look at the clock; when it nears its
// end one caller renews it, whatever the number of goroutines, processes and hosts, and the others go on with the old
// one as long as that is valid. Token asks no person: an error that matches [ErrLoginRequired] says that one must log
// in, and once they have, in whatever process, the next call succeeds.
func (s *Session) Token(ctx context.Context) (*Token, error) {
	if p := s.fresh(); p != nil {
		return p.token, nil
	}
	return s.obtain(ctx)
}

// fresh returns the token at hand, or nil if there is none or it is due for renewal.
func (s *Session) fresh() *published {
	p := s.current.Load()
	if p == nil {
		return nil
	}
	left, seen := int64(time.Until(p.renew.at)), p.seen.Load()
	if left > 0 && seen > 0 && seen-left < int64(glance) {
		return p
	}
	now := time.Now()
	if p.renew.passed(now) {
		return nil
	}
	p.seen.Store(int64(p.renew.at.Sub(now)))
	return p
}

// obtain is Token without a fresh token at hand.
func (s *Session) obtain(ctx context.Context) (*Token, error) {
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	p := s.current.Load()
	valid := p != nil && !p.dead.passed(time.Now())
	s.mu.Lock()
	busy := s.flight != nil || s.unsaved != nil // which is saved behind the callers' backs
	s.mu.Unlock()
	if valid && busy {
		return p.token, nil
	}
	t, err := s.await(ctx, key)
	if err == nil || errors.Is(err, errClosed) {
		return t, err
	}
	if p := s.current.Load(); p != nil && !p.dead.passed(time.Now()) {
		return p.token, nil // it is still good, so its user needs not know yet: events and Status tell
	}
	return nil, err
}

// await waits for a token that is fresh.
func (s *Session) await(ctx context.Context, key Key) (*Token, error) {
	t, reason, err := s.ride(ctx, key, want{})
	for err != nil && reason != (want{}) && ctx.Err() == nil {
		t, reason, err = s.ride(ctx, key, want{}) // that one failed at what others wanted
	}
	return t, err
}

// TokenFor is Token for work that takes long: the token has at least that much time left, and is renewed if need be, though
// it may be fresh. Whoever finds that somebody else renews it waits for theirs. The most to ask for is nine tenths of the
// life of the broker's tokens, which an error that matches [errors.ErrUnsupported] names.
func (s *Session) TokenFor(ctx context.Context, atLeast time.Duration) (*Token, error) {
	short := func(t *Token) bool { return !t.Expiry.IsZero() && t.left(time.Now()) < atLeast }
	t, err := s.Token(ctx)
	for range 2 { // what somebody else saved meanwhile may have too little left, too
		if err != nil || !short(t) {
			return t, err
		}
		if most := t.life() / 10 * 9; atLeast > most {
			return nil, fmt.Errorf("%s: no token has %s left, because they live for %s: ask for %s at the most: %w",
				s.Provider.Info().Name, atLeast, t.life(), most, errors.ErrUnsupported)
		}
		t, err = s.renew(ctx, want{refused: t, short: true})
	}
	if err == nil && short(t) {
		return nil, &Error{Provider: s.Provider.Info().Name, Op: "refresh", Kind: ErrUnavailable,
			Hint: fmt.Sprintf("the broker's new token has less than %s left", atLeast)}
	}
	return t, err
}

// Refresh renews the access token although it may be fresh, and returns one issued after refused; with refused nil,
// one issued after the token that is stored now.
//
// With refused given, it serves programs whose request was answered 401: a newer token that is already there is
// returned at once, any number of callers cause one refresh, and a token that is less than a minute old, or that was
// so renewed twice as often in an hour as its life asks for, is not renewed: that is ErrUnavailable.
// With refused nil it serves a person who wants to see it work: earlier refusals are forgotten and the broker is asked.
func (s *Session) Refresh(ctx context.Context, refused *Token) (*Token, error) {
	return s.renew(ctx, want{refused: refused, person: refused == nil})
}

// renew waits for a refresh for w's sake, or for a token that serves it as well.
func (s *Session) renew(ctx context.Context, w want) (*Token, error) {
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	for {
		if p := s.current.Load(); p != nil && w.satisfied(p) {
			return p.token, nil
		}
		t, reason, err := s.ride(ctx, key, w)
		if reason == w || err == nil && w.refused != nil && t.AccessToken != w.refused.AccessToken {
			return t, err
		}
		// That refresh was under way for another reason, and may have found nothing to do.
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// satisfied reports whether a published token is what is wanted.
func (w want) satisfied(p *published) bool {
	return w.refused != nil && p.token.AccessToken != w.refused.AccessToken && !p.renew.passed(time.Now())
}

// ride waits, under ctx, for the refresh under way or else for one that it starts, and says what that one was for.
func (s *Session) ride(ctx context.Context, key Key, w want) (*Token, want, error) {
	for {
		f := s.join(ctx, key, w)
		select {
		case <-f.done:
			if f.left && ctx.Err() == nil {
				continue
			}
			return f.token, f.want, f.err
		case <-ctx.Done():
		}
		s.mu.Lock()
		if f.waiters--; f.waiters == 0 {
			f.cancel()
		}
		s.mu.Unlock()
		return nil, f.want, fmt.Errorf("%s: waiting for a token: %w", key.Provider, ctx.Err())
	}
}

// Format prints which login it is, whatever the verb: nothing that it holds is for printing.
func (s *Session) Format(f fmt.State, _ rune) {
	if s == nil || s.Provider == nil {
		fmt.Fprint(f, "session{}")
		return
	}
	info := s.Provider.Info()
	fmt.Fprintf(f, "session{%s}", Key{info.Name, info.Identity, cmp.Or(s.Profile, "default")})
}

// join adds a waiter to the refresh under way, or starts one.
func (s *Session) join(ctx context.Context, key Key, w want) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flight; f != nil {
		f.waiters++
		return f
	}
	// The caller's values go along, its end does not: others may wait for the same answer.
	base := context.WithoutCancel(ctx)
	waiting, cancel := context.WithCancel(base)
	f := &flight{done: make(chan struct{}), want: w, waiters: 1, cancel: cancel}
	if err := s.check(); err != nil {
		f.err = err
		close(f.done)
		cancel()
		return f
	}
	s.flight = f
	epoch := s.epoch
	go func() {
		defer cancel()
		r := &refresh{Session: s, key: key, info: s.Provider.Info(), want: w, waiting: waiting, base: base,
			began: time.Now(), epoch: epoch, machine: machine()}
		f.token, f.err = r.run()
		f.left = waiting.Err() != nil && errors.Is(f.err, context.Canceled)
		s.mu.Lock()
		s.flight = nil
		s.mu.Unlock()
		s.emit(r.events...)
		close(f.done)
	}()
	return f
}

// key checks the fields and returns the login's key.
func (s *Session) key() (Key, error) {
	switch {
	case s.Provider == nil:
		return Key{}, errors.New("brokerauth: the session has no Provider: set it before first use")
	case s.Store == nil:
		return Key{}, errors.New("brokerauth: the session has no Store: set it before first use")
	}
	info := s.Provider.Info()
	key := Key{info.Name, info.Identity, cmp.Or(s.Profile, "default")}
	if strings.HasPrefix(key.Provider, "~") {
		return Key{}, fmt.Errorf("brokerauth: a provider's name must not begin with ~, but one is called %q", key.Provider)
	}
	return key, key.Validate()
}

// publish makes t what Token returns, unless the login was ended or replaced since epoch.
func (s *Session) publish(t *Token, epoch int) {
	p := s.published(t, s.Provider.Info(), time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.current.Load(); s.closed || s.epoch != epoch || old != nil && laterLogin(old.token, t) {
		return
	}
	s.current.Store(p)
	s.tellWatchers()
}

// putOff makes Token hand out the token it has, while that is valid, for d before the record is looked at again.
func (s *Session) putOff(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.current.Load(); p != nil {
		c := &published{token: p.token, header: p.header, renew: in(time.Now(), d), dead: p.dead}
		if c.renew.at.After(c.dead.at) {
			c.renew = c.dead
		}
		s.current.Store(c)
	}
}

// drop forgets a token that is known to be refused.
func (s *Session) drop(t *Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.current.Load(); p != nil && (t == nil || p.token.AccessToken == t.AccessToken) {
		s.current.Store(nil)
	}
}

// errClosed is that of a Session, which a Store's own fs.ErrClosed is not.
var errClosed = fmt.Errorf("the session is closed: %w", fs.ErrClosed)

// check reports that the Session is closed. s.mu is held.
func (s *Session) check() error {
	if s.closed {
		return fmt.Errorf("%s: %w", s.Provider.Info().Name, errClosed)
	}
	return nil
}

// Close ends the Session. It waits for a refresh or login that was sent to be saved, tries once more to save a token
// that could not be, and returns an error if that fails. Calls that wait for others or for a person return with an
// error matching fs.ErrClosed, and so do later ones, but for Status and Logout. Observe may be told of the last events
// while Close returns. Close may be called again, and never closes the Store.
func (s *Session) Close() error {
	s.mu.Lock()
	s.closed = true
	s.current.Store(nil)
	s.tellWatchers()
	f := s.flight
	if f != nil {
		f.cancel()
	}
	if s.giveUp != nil {
		s.giveUp()
	}
	if s.retry != nil {
		s.retry.Stop()
	}
	s.mu.Unlock()
	if f != nil {
		<-f.done
	}
	s.finishing.Wait()
	if s.Provider == nil || s.Store == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	event, err := s.saveUnsaved(ctx)
	if event != nil {
		s.emit(*event)
	}
	return err
}

// TokenSource returns a source for anything built on x/oauth2. ctx bounds every later wait for a token.
func (s *Session) TokenSource(ctx context.Context) oauth2.TokenSource { return tokenSource{ctx, s} }

type tokenSource struct {
	ctx context.Context
	s   *Session
}

func (ts tokenSource) Token() (*oauth2.Token, error) {
	t, err := ts.s.Token(ts.ctx)
	if err != nil {
		return nil, err
	}
	return t.OAuth2(), nil
}
