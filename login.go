package brokerauth

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Ensure makes sure that the login lives for at least within from now: at once if it does, else by Login with flow,
// which asks a person. The old login goes on working until the new one is saved. A login without an end (LoginBy zero)
// is enough if a token can be had.
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
	s.mu.Lock()
	if other := s.login; other != nil {
		s.mu.Unlock()
		select {
		case <-other.done:
			return other.err
		case <-ctx.Done():
			return fmt.Errorf("waiting for a login under way: %w", ctx.Err())
		}
	}
	c := &call{done: make(chan struct{})}
	s.login = c
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.login = nil
		s.mu.Unlock()
		close(c.done)
	}()
	c.err = s.logIn(ctx, flow)
	return c.err
}

func (s *Session) logIn(ctx context.Context, flow Flow) error {
	login, err := s.Begin(ctx)
	if err != nil {
		return err
	}
	if err := s.prove(ctx, login.Key); err != nil {
		return fmt.Errorf("%s: nobody was asked to log in, because the store cannot save a login: %w", login.Key.Provider, err)
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
			last = s.Complete(ctx, login, callback)
		}
		return last
	})
	mu.Lock()
	defer mu.Unlock()
	over = true
	switch {
	case last == nil:
		return nil
	case err == nil:
		return fmt.Errorf("%s: the login flow ended without a login: %w", login.Key.Provider, last)
	}
	return err
}

// Move ends the login here because it goes elsewhere: hand gets the token, and only when it has returned nil does this
// store forget it and remember to, which is for people. Meanwhile nobody renews the token, so that whoever takes it is
// the only one to have it. Afterwards Token says [ErrLoginRequired] and where the login went, until somebody logs in.
func (s *Session) Move(ctx context.Context, to string, hand func(*Token) error) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return s.errClosed()
	}
	s.finishing.Add(1)
	epoch := s.epoch
	s.mu.Unlock()
	defer s.finishing.Done()
	if _, err := s.saveUnsaved(ctx); err != nil {
		return err
	}
	// A claim keeps everybody else from renewing.
	r := &refresh{Session: s, key: key, info: s.Provider.Info(), waiting: ctx, base: context.WithoutCancel(ctx), began: time.Now(),
		epoch: epoch, machine: machine()}
	claimed, mine, err := r.claimToken()
	if err != nil {
		return err
	}
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
	switch swapped, err := s.Store.CompareAndSwap(ctx, key, claimed, raw); {
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
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	p, ok := s.Provider.(LoginProvider)
	if !ok {
		return nil, fmt.Errorf("%s has no login page: its grant is part of the settings: %w", key.Provider, errors.ErrUnsupported)
	}
	login, err := p.Begin(ctx)
	if err != nil {
		return nil, err
	}
	login.Key = key
	return login, nil
}

// Complete finishes login with the address that the broker sent the user back to, and saves the new token. What was
// sent to the broker once is never sent again, and its repetition gets the same answer. A login that began for another
// Session's key is refused. Once the code is sent, the exchange and the save are carried through whatever ctx says.
func (s *Session) Complete(ctx context.Context, login *Login, callback string) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	p, ok := s.Provider.(LoginProvider)
	if !ok {
		return fmt.Errorf("%s has no login page: %w", key.Provider, errors.ErrUnsupported)
	}
	if login == nil || login.Key != key {
		return fmt.Errorf("%s: this login began for another broker, app or profile: start it anew", key.Provider)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	id := fingerprint(login.State+login.Secret) + fingerprint(codeIn(callback)) + codeIn(callback)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return s.errClosed()
	}
	c := s.sent[id]
	if c == nil {
		if s.sent == nil || len(s.sent) >= 100 {
			s.sent = map[string]*call{}
		}
		c = &call{done: make(chan struct{})}
		s.sent[id] = c
		s.finishing.Add(1)
		epoch := s.epoch
		s.mu.Unlock()
		c.err = s.complete(context.WithoutCancel(ctx), p, key, login, callback, epoch)
		close(c.done)
		s.finishing.Done()
		return c.err
	}
	s.mu.Unlock()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Session) complete(ctx context.Context, p LoginProvider, key Key, login *Login, callback string, epoch int) error {
	began := time.Now()
	exchange, cancel := context.WithTimeout(ctx, tokenTimeout)
	t, err := p.Complete(exchange, login, callback)
	cancel()
	if err == nil {
		err = t.fault()
	}
	if err != nil {
		return asError(key.Provider, "login", err)
	}
	return s.accept(ctx, key, t, epoch, began)
}

// codeIn is what of a callback can be spent, however it is spelled around.
func codeIn(callback string) string {
	callback = strings.TrimSpace(callback)
	if _, query, ok := strings.Cut(callback, "?"); ok {
		callback = query
	}
	if values, err := url.ParseQuery(callback); err == nil && values.Get("code") != "" {
		return strings.ReplaceAll(values.Get("code"), " ", "+")
	}
	bare, _, _ := strings.Cut(callback, "&")
	if code, err := url.PathUnescape(bare); err == nil {
		return code
	}
	return bare
}

// Save stores a token that was got elsewhere, such as one imported from another library's file. It never replaces a
// login with a later LoggedInAt: that is an error matching fs.ErrExist.
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
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return s.errClosed()
	}
	s.finishing.Add(1)
	epoch := s.epoch
	s.mu.Unlock()
	defer s.finishing.Done()
	return s.accept(ctx, key, t, epoch, time.Now())
}

// accept saves and publishes the token of a new login.
func (s *Session) accept(ctx context.Context, key Key, t *Token, epoch int, began time.Time) error {
	u := &unsaved{key: key, token: utc(t), login: true, epoch: epoch}
	event := Event{Kind: "login", Key: key, Token: fingerprint(t.AccessToken)}
	saved, err := s.save(ctx, u)
	if u.aside != nil {
		s.emit(Event{Kind: "set aside", Key: key, Err: u.aside})
	}
	switch {
	case err != nil:
		s.keep(u, err)
		event.Kind, event.Err = "unsaved", err
	case saved:
		s.mu.Lock()
		s.unsaved, s.saveErr = nil, nil
		s.mu.Unlock()
		s.publish(u.token, epoch)
	default:
		// A later login was saved meanwhile: it counts, and the next Token takes it.
		return nil
	}
	event.Took = time.Since(began)
	s.emit(event)
	return err
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
	for {
		raw, err := s.Store.Load(ctx, key)
		if errors.Is(err, ErrCorrupt) {
			if store, ok := s.Store.(asider); ok {
				if _, err = store.SetAside(ctx, key); err == nil {
					continue
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			raw, err = nil, nil
		}
		if err != nil {
			return fmt.Errorf("%s: logging out: %w", key.Provider, err)
		}
		swapped, err := s.Store.CompareAndSwap(ctx, key, raw, nil)
		if err != nil {
			return fmt.Errorf("%s: logging out: %w", key.Provider, err)
		}
		if swapped {
			break
		}
	}
	s.mu.Lock()
	s.epoch++
	s.unsaved, s.saveErr = nil, nil
	s.current.Store(nil)
	s.mu.Unlock()
	s.emit(Event{Kind: "logout", Key: key})
	return nil
}
