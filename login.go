package brokerauth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Ensure makes sure that the login lives for at least within from now: at once if it does, else by Login with flow,
// which asks a person. The old login goes on working until the new one is saved, so that an error, of a consent that was
// declined, say, may match [ErrLoginRequired] although the old login lives. A login without an end (LoginBy zero) is enough
// if a token can be had.
func (s *Session) Ensure(ctx context.Context, flow Flow, within time.Duration) error {
	st, err := s.Status(ctx)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	if err == nil && !st.LoginRequired(within) {
		// Its days are an estimate: the broker may have ended it early.
		_, err := s.Token(ctx)
		if errors.Is(err, ErrUnavailable) && !st.LoginBy.IsZero() {
			return nil
		}
		if !errors.Is(err, ErrLoginRequired) {
			return err
		}
	} else if _, ok := s.Provider.(LoginProvider); !ok {
		_, err := s.Token(ctx)
		return err
	}
	return s.Login(ctx, flow)
}

// Login takes a person through flow to the broker's login page and back, and saves the new login over the old one. It
// first proves that the store can save, so that nobody logs in for nothing. Calls at the same time share one login.
func (s *Session) Login(ctx context.Context, flow Flow) error {
	for {
		s.mu.Lock()
		other := s.login
		if other == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-other.done:
			if errors.Is(other.err, context.Canceled) || errors.Is(other.err, context.DeadlineExceeded) {
				continue // its caller's context ended, not this one's
			}
			return other.err
		case <-ctx.Done():
			return fmt.Errorf("brokerauth: waiting for a login under way: %w", ctx.Err())
		}
	}
	c := &call{done: make(chan struct{}), err: errors.New("brokerauth: the login flow never returned")}
	flowCtx, cancel := context.WithCancel(ctx)
	s.login, s.giveUp = c, cancel
	s.mu.Unlock()
	var events []Event
	defer func() {
		cancel()
		s.mu.Lock()
		s.login, s.giveUp = nil, nil
		s.mu.Unlock()
		close(c.done)
		s.emit(events...)
	}()
	events, c.err = s.logIn(flowCtx, flow)
	if ctx.Err() == nil {
		c.err = s.orClosed(c.err)
	}
	return c.err
}

func (s *Session) logIn(ctx context.Context, flow Flow) (events []Event, err error) {
	key, p, err := s.loginProvider()
	if err != nil {
		return nil, err
	}
	if flow == nil {
		return nil, fmt.Errorf("%s: no flow was given: package flows has them", key.Provider)
	}
	if err := s.prove(ctx, key); err != nil {
		return nil, fmt.Errorf("%s: nobody was asked to log in, because the store cannot save a login: %w", key.Provider, err)
	}
	login, err := begin(ctx, p, key)
	if err != nil {
		return nil, err
	}
	var (
		mu   sync.Mutex // held while a code is on its way: whatever the flow does, it is carried to its save
		over bool
		last = errors.New("no address came back")
	)
	err = flow(ctx, login, func(ctx context.Context, callback string) error {
		mu.Lock()
		defer mu.Unlock()
		if last != nil && !over {
			var more []Event
			more, last = s.finish(ctx, login, callback)
			events = append(events, more...)
		}
		return last
	})
	mu.Lock()
	defer mu.Unlock()
	over = true
	switch {
	case last == nil:
		return events, nil
	case err == nil:
		return events, fmt.Errorf("%s: the login flow ended without a login: %w", key.Provider, last)
	}
	return events, err
}

// loginProvider returns the Session's key and provider, if that has a login page and the Session is open.
func (s *Session) loginProvider() (Key, LoginProvider, error) {
	key, err := s.key()
	if err != nil {
		return Key{}, nil, err
	}
	p, ok := s.Provider.(LoginProvider)
	if !ok {
		return Key{}, nil, fmt.Errorf("%s has no login page: its grant is part of the settings: %w", key.Provider, errors.ErrUnsupported)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return key, p, s.check()
}

// Move ends the login here because it goes elsewhere: hand gets the token, and only when it has returned nil does this
// store forget it and remember to, which is for people. Meanwhile nobody renews the token, so that whoever takes it is
// the only one to have it; that lasts 20 seconds, and hand should not take longer. Afterwards Token says [ErrLoginRequired] and where the login went, until somebody logs in.
func (s *Session) Move(ctx context.Context, to string, hand func(*Token) error) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	s.mu.Lock()
	err = s.check()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if _, err := s.saveUnsaved(ctx); err != nil {
		return err
	}
	// A claim keeps everybody else from renewing.
	r := &refresh{Session: s, key: key, info: s.Provider.Info(), waiting: ctx, base: context.WithoutCancel(ctx), began: time.Now(),
		machine: machine()}
	claimed, mine, err := r.claimToken()
	if err != nil {
		return err
	}
	swapped := false
	defer func() {
		if !swapped { // whatever hand did, panic included
			s.mu.Lock()
			s.orphan = mine.claim.ID
			s.mu.Unlock()
		}
	}()
	next := mine.with(func(c *record) { c.claim = nil })
	handErr := hand(mine.token)
	if handErr == nil {
		next = next.with(func(c *record) {
			delete(c.fields, "token")
			c.token, c.verdict, c.doubt, c.moved = nil, nil, time.Time{}, &moved{To: clean(to), At: time.Now().Round(0).UTC()}
		})
	}
	raw, err := next.encode(key.Provider)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.base, storeTimeout)
	defer cancel()
	swapped, err = s.Store.CompareAndSwap(ctx, key, claimed, raw)
	switch {
	case handErr != nil:
		return fmt.Errorf("%s: the login stays here: %w", key.Provider, handErr)
	case err != nil:
		return fmt.Errorf("%s: the login was handed over, but is still stored here, too: log out here before it is renewed: %w", key.Provider, err)
	case !swapped:
		return fmt.Errorf("%s: the login was handed over, but changed here meanwhile: log in again at one of the two places", key.Provider)
	}
	s.mu.Lock()
	s.epoch++
	s.unsaved, s.saveErr = nil, nil
	s.current.Store(nil)
	s.tellWatchers()
	s.mu.Unlock()
	s.emit(Event{Kind: "moved", Key: key, Token: fingerprint(mine.token.AccessToken)})
	return nil
}

// prove writes, reads and deletes a record of its own, and looks whether a login may stand in the place of key.
func (s *Session) prove(ctx context.Context, key Key) error {
	if _, _, err := s.load(ctx, key); err != nil {
		_, can := s.Store.(asider)
		if !errors.Is(err, ErrCorrupt) || !can {
			return err
		}
	}
	probe, want := Key{Provider: "~probe", Profile: strings.ToLower(rand.Text())}, []byte(`{"v":1}`)
	swapped, err := s.Store.CompareAndSwap(ctx, probe, nil, want)
	if err != nil || !swapped {
		return errorOr(err, "a new record was not taken")
	}
	got, err := s.Store.Load(ctx, probe)
	if err == nil && string(got) != string(want) {
		err = errors.New("a record was read back changed")
	}
	swapped, deleteErr := s.Store.CompareAndSwap(context.WithoutCancel(ctx), probe, want, nil)
	if err == nil && (deleteErr != nil || !swapped) {
		err = errorOr(deleteErr, "a record could not be deleted")
	}
	return err
}

func errorOr(err error, otherwise string) error {
	if err != nil {
		return err
	}
	return errors.New(otherwise)
}

// Begin starts a login for a program that brings the user to login.URL and back by itself, as a web app does. Complete
// finishes it, in this or another process.
func (s *Session) Begin(ctx context.Context) (*Login, error) {
	key, p, err := s.loginProvider()
	if err != nil {
		return nil, err
	}
	return begin(ctx, p, key)
}

func begin(ctx context.Context, p LoginProvider, key Key) (*Login, error) {
	login, err := p.Begin(ctx)
	if err != nil {
		return nil, asError(key.Provider, "login", err)
	}
	if login == nil {
		return nil, fmt.Errorf("%s: the provider began no login", key.Provider)
	}
	login.Key = key
	return login, nil
}

// Complete finishes login with the address that the broker sent the user back to, and saves the new token. What this
// Session sent to the broker once it never sends again, and its repetition gets the same answer. A login that began for
// another Session's key is refused. Once the code is sent, the exchange and the save are carried through whatever ctx says.
func (s *Session) Complete(ctx context.Context, login *Login, callback string) error {
	events, err := s.finish(ctx, login, callback)
	s.emit(events...)
	return err
}

// finish is Complete, with the events still to be told.
func (s *Session) finish(ctx context.Context, login *Login, callback string) ([]Event, error) {
	key, p, err := s.loginProvider()
	if err != nil {
		return nil, err
	}
	if login == nil || login.Key != key {
		return nil, fmt.Errorf("%s: this login began for another broker, app or profile: start it anew", key.Provider)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: the login was given up: %w", key.Provider, err)
	}
	id := sha256.Sum256([]byte(login.State + "\n" + login.Secret + "\n" + codeIn(callback)))
	s.mu.Lock()
	if err := s.check(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	if c := s.sent[id]; c != nil {
		s.mu.Unlock()
		select {
		case <-c.done:
			return nil, c.err
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: the login was given up: %w", key.Provider, ctx.Err())
		}
	}
	c := &call{done: make(chan struct{})}
	if s.sent == nil {
		s.sent = map[[32]byte]*call{}
	}
	s.sent[id] = c
	s.finishing.Add(1)
	defer s.finishing.Done()
	epoch := s.epoch
	s.mu.Unlock()
	defer close(c.done)
	c.err = errors.New("brokerauth: the exchange never returned")
	var events []Event
	events, c.err = s.exchange(context.WithoutCancel(ctx), p, key, login, callback, epoch)
	var e *Error
	if errors.As(c.err, &e) && e.Kind == nil && e.Status == 0 {
		s.mu.Lock()
		delete(s.sent, id) // nothing was sent: what can be pasted in vain has no bound
		s.mu.Unlock()
	}
	return events, c.err
}

func (s *Session) exchange(ctx context.Context, p LoginProvider, key Key, login *Login, callback string, epoch int) ([]Event, error) {
	began := time.Now()
	var before time.Time
	if _, rec, err := s.load(ctx, key); err == nil && rec.hasToken() {
		before = rec.token.LoggedInAt
	}
	bounded, cancel := context.WithTimeout(ctx, tokenTimeout)
	t, err := p.Complete(bounded, login, callback)
	cancel()
	var own *Error
	if err == nil {
		err = t.fault()
	} else if errors.As(err, &own) {
		return nil, asError(key.Provider, "login", err)
	}
	if err != nil {
		e := asError(key.Provider, "login", err)
		e.Kind = cmp.Or(e.Kind, ErrUnavailable) // the code counts as sent
		return nil, e
	}
	return s.accept(ctx, &unsaved{key: key, token: utc(t), login: true, epoch: epoch, before: before}, began)
}

// codeIn is what of a callback can be spent, however it is spelled around.
func codeIn(callback string) string {
	callback, _, _ = strings.Cut(strings.TrimSpace(callback), "#")
	if _, query, ok := strings.Cut(callback, "?"); ok {
		callback = query
	}
	if values, _ := url.ParseQuery(callback); values.Get("code") != "" {
		return strings.ReplaceAll(values.Get("code"), " ", "+")
	}
	bare, _, _ := strings.Cut(callback, "&")
	if code, err := url.PathUnescape(bare); err == nil {
		return code
	}
	return bare
}

// Save stores a token that was got elsewhere, such as one imported from another library's file. It never replaces a
// login with a later LoggedInAt, nor newer tokens of one with the same: that is an error matching fs.ErrExist.
func (s *Session) Save(ctx context.Context, t *Token) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	if err := t.fault(); err != nil {
		return fmt.Errorf("%s: this token cannot be saved: %w", key.Provider, err)
	}
	if _, rec, err := s.load(ctx, key); err == nil && rec.hasToken() && laterLogin(rec.token, t) {
		return fmt.Errorf("%s: a later login, of %s, is stored already, and was kept: %w", key.Provider,
			rec.token.LoggedInAt.Local().Format(time.DateTime), fs.ErrExist)
	}
	if _, rec, err := s.load(ctx, key); err == nil && rec.hasToken() && newerTokens(rec.token, t) {
		return fmt.Errorf("%s: newer tokens of this login are stored already, and were kept: %w", key.Provider, fs.ErrExist)
	}
	epoch, err := s.enter()
	if err != nil {
		return err
	}
	events, err := func() ([]Event, error) {
		defer s.finishing.Done()
		return s.accept(ctx, &unsaved{key: key, token: utc(t), login: true, epoch: epoch}, time.Now())
	}()
	s.emit(events...)
	for _, e := range events {
		if e.Kind == "adopted" {
			return fmt.Errorf("%s: a later login was saved meanwhile, and was kept: %w", key.Provider, fs.ErrExist)
		}
	}
	return err
}

// newerTokens reports whether a are newer tokens of what may be the same login as b's: where refresh tokens rotate, b's
// may be spent.
func newerTokens(a, b *Token) bool {
	return a.LoggedInAt.Equal(b.LoggedInAt) && !b.Expiry.IsZero() && a.Expiry.After(b.Expiry) && time.Until(a.Issued.Round(0)) < time.Minute
}

// enter has Close wait for s.finishing.Done.
func (s *Session) enter() (epoch int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(); err != nil {
		return 0, err
	}
	s.finishing.Add(1)
	return s.epoch, nil
}

// accept saves and publishes the token of a new login, and returns the events to tell.
func (s *Session) accept(ctx context.Context, u *unsaved, began time.Time) (events []Event, err error) {
	saved, err := s.save(ctx, u)
	if u.aside != nil {
		events = append(events, Event{Kind: "set aside", Key: u.key, Err: u.aside})
	}
	event := Event{Kind: "login", Key: u.key, Token: fingerprint(u.token.AccessToken)}
	switch {
	case err != nil:
		s.keep(u, err)
		event.Kind, event.Err = "unsaved", err
	case saved:
		s.mu.Lock()
		s.unsaved, s.saveErr, s.held = nil, nil, nil
		s.mu.Unlock()
		s.publish(u.token, u.epoch)
	default:
		if _, rec, err := s.load(ctx, u.key); err == nil && !rec.hasToken() {
			return events, &Error{Provider: u.key.Provider, Op: "login", Kind: ErrLoginRequired,
				Hint: "somebody logged out meanwhile: log in again"}
		}
		event.Kind = "adopted" // a later login was saved meanwhile: it counts, and the next Token takes it
	}
	event.Took = time.Since(began)
	return append(events, event), err
}

// asider is a Store that can move an unreadable record out of the way.
type asider interface {
	SetAside(ctx context.Context, key Key) (where string, err error)
}

// setAside makes way for u where the record is corrupt, which is cause.
func (s *Session) setAside(ctx context.Context, u *unsaved, cause error) ([]byte, *record, error) {
	store, ok := s.Store.(asider)
	if !errors.Is(cause, ErrCorrupt) || !ok {
		return nil, nil, cause
	}
	where, err := store.SetAside(ctx, u.key)
	if err != nil {
		return nil, nil, fmt.Errorf("%w, and could not be set aside: %w", cause, err)
	}
	u.aside = fmt.Errorf("%w; it was moved to %s", cause, where)
	return s.load(ctx, u.key)
}

// Logout deletes the login and every copy of it. A refresh under way does not bring it back.
func (s *Session) Logout(ctx context.Context) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	for delay := time.Millisecond; ; delay *= 2 {
		gone, err := s.delete(ctx, key)
		if gone && err == nil {
			break
		}
		if err == nil && delay > time.Second {
			err = fmt.Errorf("what is stored changed each time, or the store does not know it again: try again: %w", ErrUnavailable)
		}
		if err == nil {
			err = sleep(ctx, delay)
		}
		if err != nil {
			return fmt.Errorf("%s: logging out: %w", key.Provider, err)
		}
	}
	s.mu.Lock()
	s.epoch++
	s.unsaved, s.saveErr = nil, nil
	s.current.Store(nil)
	s.tellWatchers()
	s.mu.Unlock()
	s.emit(Event{Kind: "logout", Key: key})
	return nil
}

// delete deletes what is stored, and reports whether that is done; what cannot be read it moves aside first.
func (s *Session) delete(ctx context.Context, key Key) (gone bool, err error) {
	raw, err := s.Store.Load(ctx, key)
	store, ok := s.Store.(asider)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		raw = nil
	case errors.Is(err, ErrCorrupt) && ok:
		if _, asideErr := store.SetAside(ctx, key); asideErr != nil && !errors.Is(asideErr, fs.ErrNotExist) {
			return false, fmt.Errorf("%w, and could not be set aside: %w", err, asideErr)
		}
		return false, nil
	case err != nil:
		return false, err
	}
	return s.Store.CompareAndSwap(ctx, key, raw, nil)
}
