package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
)

func (a *app) storeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Move logins between stores",
		Args:  cobra.NoArgs,
		RunE: a.action(func(context.Context, []string) error {
			return usageError{errors.New("say what to do: brokerauth store move FROM TO")}
		}),
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "move FROM TO",
		Short: "Move every login from one store to another",
		Long: "Move every login from one store to another, each with its age. What arrived is read back and compared before it is " +
			"removed where it was. A move that was interrupted goes on when it is run again.\n\n" +
			"    brokerauth store move keyring sealed+disk:/var/lib/me\n\n" +
			"Later commands find the logins at the new place, and so does a keep that runs and names no store. Any other program that runs " +
			"has to be told of it.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("name two stores: brokerauth store move FROM TO")
			}
			return nil
		},
		RunE: a.action(func(ctx context.Context, args []string) error { return a.moveAll(ctx, args[0], args[1]) }),
	})
	return cmd
}

func (a *app) moveAll(ctx context.Context, fromName, toName string) error {
	if a.store != "" {
		return usageError{errors.New("leave --store out: the two stores are named already")}
	}
	a.attended = newPrompt(a.in, a.err) != nil
	found, err := a.settings()
	if err != nil {
		return err
	}
	for _, name := range []string{fromName, toName} {
		if name == "memory" {
			return usageError{errors.New("the store memory ends with this command: nothing can be moved from or to it")}
		}
	}
	if err := mustExist(fromName); err != nil {
		return err
	}
	from, err := a.openOnce(ctx, found, fromName, "")
	if err != nil {
		return err
	}
	to, err := a.openOnce(ctx, found, toName, "")
	if err != nil {
		return err
	}
	keys, err := from.keys(ctx)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		a.say("%s: no login is stored there.", from.name)
		return nil
	}
	if same, err := onePlace(ctx, from, to); err != nil {
		return err
	} else if same {
		return usageError{fmt.Errorf("%s and %s are one place", from.name, to.name)}
	}
	var failed error
	for _, key := range keys {
		moved, err := a.moveLogin(ctx, key, from, to)
		if err != nil {
			one := *a
			one.broker, one.profile = key.Provider, key.Profile
			one.complain(about(a.who(key), fmt.Errorf("it stays in %s: %w", from.name, err)))
			failed = told{err}
			if ctx.Err() != nil {
				break
			}
			continue
		}
		a.say("%s: moved: %s", a.who(key), moved)
	}
	return failed
}

// mustExist is an error if the store's own file or folder is missing, as where its name is misspelt: nobody must take that for
// a store from which all has been moved.
func mustExist(name string) error {
	name = strings.TrimPrefix(name, "sealed+")
	for _, prefix := range []string{"sqlite:", "disk:"} {
		path, ok := strings.CutPrefix(name, prefix)
		if !ok || path == "" || path[0] == '~' {
			continue // a name that makes no sense is told of as such
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s does not exist, so there is nothing to move: look how it is spelt", strings.TrimPrefix(shown(name), prefix))
		}
	}
	return nil
}

// onePlace reports whether what is written to one store is in the other. Names do not tell: a folder may have several, by
// links and mounts, and so may a server. Where they are one, what was copied would be removed as the old one.
func onePlace(ctx context.Context, from, to keptStore) (bool, error) {
	key, record := brokerauth.Key{Provider: "~probe", Profile: strings.ToLower(rand.Text())}, []byte(`{"v":1}`)
	swapped, err := from.CompareAndSwap(ctx, key, nil, record)
	if err != nil || !swapped {
		return false, cmp.Or(err, fmt.Errorf("the store %s does not keep what it is given", from.name))
	}
	_, err = to.Load(ctx, key)
	if _, deleteErr := from.CompareAndSwap(context.WithoutCancel(ctx), key, record, nil); deleteErr != nil {
		return false, deleteErr
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("nothing was moved: %w", err)
	}
	return true, nil
}

// moveLogin moves one record, and says what it is.
//
// Two stores have no common lock. For the moment between copy and removal a program at either place may renew the
// login; at the old one that keeps the removal from happening, and what it got is copied anew.
func (a *app) moveLogin(ctx context.Context, key brokerauth.Key, from, to keptStore) (what string, err error) {
	what = "it was gone already"
	for {
		record, err := a.settled(ctx, key, from)
		if errors.Is(err, fs.ErrNotExist) {
			return what, nil
		}
		if err != nil {
			return "", err
		}
		st, err := a.session(onlyStored{key: key}, from, key.Profile).Status(ctx)
		if err != nil {
			return "", err
		}
		what = "nobody is logged in by it"
		if st.LoggedIn {
			what = clocks(st)
		}
		if !st.LoggedInAt.IsZero() {
			what += "; logged in " + moment(st.LoggedInAt)
		}
		there, err := to.Load(ctx, key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		want := record
		if there != nil && !bytes.Equal(there, record) {
			// A move that was interrupted left it there, and one of the two was renewed since; or it is another login.
			other, err := a.session(onlyStored{key: key}, to, key.Profile).Status(ctx)
			if err != nil {
				return "", err
			}
			switch {
			case !other.LoggedIn && other.LastError == nil: // or it only says where a login went that was there
			case !st.LoggedIn && st.MovedTo != "":
				want = there
			case st.LoggedInAt.IsZero() || !st.LoggedInAt.Equal(other.LoggedInAt):
				return "", fmt.Errorf("%s has another login there already: delete one of the two with logout, naming its store: %w", to.name, fs.ErrExist)
			case !other.AccessExpiresAt.Before(st.AccessExpiresAt):
				want = there
			}
		}
		if !bytes.Equal(there, want) {
			swapped, err := to.CompareAndSwap(ctx, key, there, want)
			if err != nil {
				return "", err
			}
			if !swapped {
				continue
			}
		}
		back, err := to.Load(ctx, key)
		if err != nil {
			return "", fmt.Errorf("what was stored in %s cannot be read back: %w", to.name, err)
		}
		if !bytes.Equal(back, want) {
			continue // somebody renewed it there
		}
		a.remember(ctx, key, to)
		gone, err := from.CompareAndSwap(ctx, key, record, nil)
		if err != nil {
			return "", fmt.Errorf("it was copied to %s, but cannot be removed: run the same again before it is renewed: %w", to.name, err)
		}
		if gone {
			return what, nil
		}
	}
}

// settled returns the record at key once nobody is renewing the login: the answer belongs where it was asked from. Who has
// not come back after half a minute will not.
func (a *app) settled(ctx context.Context, key brokerauth.Key, store keptStore) ([]byte, error) {
	began, told := time.Now(), false
	for {
		record, err := store.Load(ctx, key)
		if err != nil {
			return nil, err
		}
		var r struct {
			Claim json.RawMessage `json:"claim"`
		}
		if json.Unmarshal(record, &r) != nil || r.Claim == nil || time.Since(began) > 30*time.Second {
			return record, nil
		}
		if !told && time.Since(began) > time.Second {
			fmt.Fprintf(a.err, "brokerauth: %s: waiting for a program that renews it\n", a.who(key))
			told = true
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
