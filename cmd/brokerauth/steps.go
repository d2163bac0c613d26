package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/term"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
)

// A login in two steps is begun by one process and finished by another, for a place where nobody can wait: a notebook,
// a container, a chat. In between it waits in the login's own store, as private as a login there, in a record of its own.

// pendingLife is how long a login that was started can be finished.
const pendingLife = time.Hour

// pendingKey is where a login of key waits to be finished.
func pendingKey(key brokerauth.Key) brokerauth.Key {
	sum := sha256.Sum256([]byte(key.String()))
	return brokerauth.Key{Provider: "~login", Identity: fmt.Sprintf("%x", sum[:16])}
}

// startLogin is login --start.
func (a *app) startLogin(ctx context.Context, b broker) error {
	s, store, asked, err := a.open(ctx, b, newPrompt(a.in, a.err))
	if err != nil {
		return err
	}
	defer s.Close()
	login, err := s.Begin(ctx)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(login)
	if err != nil {
		return err
	}
	// It takes the place of one that was started before: there is one page to log in at, the newest.
	for swapped := false; !swapped; {
		old, err := store.Load(ctx, pendingKey(login.Key))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			swapped, err = store.CompareAndSwap(ctx, pendingKey(login.Key), old, raw)
		}
		if err != nil {
			return fmt.Errorf("%s: the started login cannot be kept: %w", b.name, err)
		}
	}
	fmt.Fprintf(a.err, "Log in at the address that follows. Then the browser shows a page that cannot be reached: that is right;\n"+
		"copy its whole address and hand it, within 30 seconds, to the standard input of:\n\n    %s --finish -\n\n"+
		"That works until %s, once.\n\n", a.remedy(), moment(login.Began.Add(pendingLife)))
	if len(asked) > 0 {
		fmt.Fprintf(a.err, "It needs the same settings: set %s.\n\n", places(a.profile))
	}
	a.say("%s", login.URL)
	return nil
}

// finishLogin is login --finish.
func (a *app) finishLogin(ctx context.Context, b broker, timeout time.Duration) error {
	s, store, _, err := a.open(ctx, b, nil)
	if err != nil {
		return err
	}
	err = a.finishWith(ctx, b, s, store, timeout)
	if err = a.loginEnded(ctx, b, s, closed(s, err)); err != nil {
		return err
	}
	return a.loggedIn(ctx, b, s, store, nil)
}

func (a *app) finishWith(ctx context.Context, b broker, s *brokerauth.Session, store keptStore, timeout time.Duration) error {
	info := s.Provider.Info()
	key := pendingKey(brokerauth.Key{Provider: info.Name, Identity: info.Identity, Profile: s.Profile})
	missing := usageError{fmt.Errorf("%s: no login waits to be finished here: run: %s --start", b.name, a.remedy())}
	raw, err := store.Load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return missing
	}
	if err != nil {
		return err
	}
	login := new(brokerauth.Login)
	if err := json.Unmarshal(raw, login); err != nil {
		return usageError{fmt.Errorf("%s: the login that was started cannot be read: run: %s --start", b.name, a.remedy())}
	}
	if age := time.Since(login.Began); age > pendingLife || age < -pendingLife {
		if _, err := store.CompareAndSwap(ctx, key, raw, nil); err != nil {
			return err
		}
		return usageError{fmt.Errorf("%s: the login that was started at %s has waited too long: run: %s --start",
			b.name, moment(login.Began), a.remedy())}
	}

	var last error
	finish := func(ctx context.Context, callback string) error {
		// Whoever takes the record sends the code: no two processes do.
		swapped, err := store.CompareAndSwap(ctx, key, raw, nil)
		switch {
		case err != nil:
			last = fmt.Errorf("%s: the started login cannot be taken up: %w", b.name, err)
			return errors.Join(last, fs.ErrPermission) // no other address helps
		case !swapped:
			last = missing
			return errors.Join(last, fs.ErrNotExist)
		}
		last = s.Complete(ctx, login, callback)
		if e, ok := errors.AsType[*brokerauth.Error](last); ok && e.Kind == nil && e.Status == 0 && e.Code == "" {
			// Nothing was sent: the right address may still come, here or in another run.
			if _, err := store.CompareAndSwap(context.WithoutCancel(ctx), key, nil, raw); err != nil {
				last = errors.Join(last, err)
			}
		}
		return last
	}
	options := &flows.Options{In: a.in, Out: io.Discard, Timeout: timeout}
	if term.IsTerminal(int(a.in.Fd())) {
		options.Out = a.err // there is somebody to talk to
	}
	err = flows.Paste(options)(ctx, login, finish)
	if last != nil {
		return last
	}
	return err
}
