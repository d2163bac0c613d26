package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
)

func (a *app) keepCommand() *cobra.Command {
	var onDeadline string
	cmd := &cobra.Command{
		Use:   "keep",
		Short: "Keep all stored logins fresh until interrupted",
		Long: "Renew every stored login ahead of time, of all profiles unless one is named, until interrupted; and tell 48, 24, 6 and 1 " +
			"hours ahead that a person must log in. Logins that are stored or deleted meanwhile, and settings that change, are noticed " +
			"within a minute.\n\n" +
			"--on-deadline runs a command of the shell's at each of those hours, once for a login however many programs keep it; and " +
			"when the login has ended or the broker refuses the settings, which each keep tells once, and again when it is started anew. " +
			"It gets no secret: the settings are taken out of its environment, and it finds there\n\n" +
			"    BROKERAUTH_EVENT      deadline, ended or rejected\n" +
			"    BROKERAUTH_BROKER     schwab, say\n" +
			"    BROKERAUTH_PROFILE    default, say\n" +
			"    BROKERAUTH_LOGIN_BY   when the login ends, as 2006-01-02T15:04:05Z; empty: unknown\n" +
			"    BROKERAUTH_WITHIN     of a deadline: 48h, 24h, 6h or 1h\n" +
			"    BROKERAUTH_MESSAGE    all of it in a sentence for people\n\n" +
			"It may take a minute, or five seconds once keep is interrupted. Its output goes to standard error, and its failure is told " +
			"there and not repeated.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&onDeadline, "on-deadline", "", "the command to run when a person must log in")
	cmd.RunE = a.action(func(ctx context.Context, _ []string) error {
		k := &keeping{app: a, onDeadline: onDeadline, again: make(chan struct{}, 1), kept: make(map[brokerauth.Key]placed),
			ends: make(map[brokerauth.Key]time.Time), over: make(map[brokerauth.Key]bool)}
		return k.run(ctx)
	})
	return cmd
}

const (
	keepScan = time.Minute     // how often keep looks for logins that are new or gone
	keepWait = 2 * time.Second // and for the first one
	keepHook = 5 * time.Second // how long an interrupt leaves to the command of --on-deadline: it is told once
)

// keeping is one run of keep.
type keeping struct {
	*app
	onDeadline string
	keeper     brokerauth.Keeper
	again      chan struct{} // a login is gone from its place: look where it is
	kept       map[brokerauth.Key]placed
	skipped    map[brokerauth.Key]string // what is not kept, and why
	fault      error                     // of the settings of those

	running  context.Context // of the commands
	commands sync.WaitGroup
	oneByOne sync.Mutex // one command at a time

	mu   sync.Mutex
	ends map[brokerauth.Key]time.Time // the LoginBy that was told
	over map[brokerauth.Key]bool      // that was told, too
}

func (k *keeping) run(ctx context.Context) error {
	running, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	k.running = running
	if err := k.scan(ctx, k.err); err != nil {
		return err
	}
	if len(k.kept) == 0 && k.fault != nil {
		return told{usageError{k.fault}} // the settings would not get better by waiting
	}
	if len(k.kept)+len(k.skipped) == 0 {
		fmt.Fprintln(k.err, "brokerauth: there is no login to keep yet: run: brokerauth login BROKER")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.keeper.Run(ctx)
	}()
	trouble := ""
	for ctx.Err() == nil {
		wait := keepScan
		if len(k.kept) == 0 {
			wait = keepWait
		}
		select {
		case <-ctx.Done():
			continue
		case <-k.again:
		case <-time.After(wait):
		}
		k.found = nil // so that settings are read anew
		err := k.scan(ctx, io.Discard)
		if err != nil && ctx.Err() == nil && err.Error() != trouble {
			fmt.Fprintf(k.err, "brokerauth: looking for logins: %v\n", err)
		}
		trouble = ""
		if err != nil {
			trouble = err.Error()
		}
	}
	time.AfterFunc(keepHook, func() { end(errors.New("it was ended, because this program was interrupted")) })
	<-done
	var err error
	for _, s := range k.kept {
		err = errors.Join(err, s.Close())
	}
	k.waiting.Store("the command of --on-deadline, which has a few seconds more")
	k.commands.Wait()
	return err // that it was interrupted is how it ends
}

// announce prints a line of the answer.
func (k *keeping) announce(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.say(format, args...)
}

// scan keeps what is stored and can be renewed, and nothing else. What the settings say is told on told.
func (k *keeping) scan(ctx context.Context, told io.Writer) error {
	quiet := *k.app
	quiet.err = told
	sessions, err := quiet.allStored(ctx)
	k.found, k.debug, k.opened, k.atEnd = quiet.found, quiet.debug, quiet.opened, quiet.atEnd
	if err != nil {
		return err // of one store is enough: what is in it must not count as logged out
	}
	found, skipped := make(map[brokerauth.Key]placed), make(map[brokerauth.Key]string)
	faults := make(map[string]error) // by the store; nil: it opens
	k.fault = nil
	for _, s := range sessions {
		st, err := s.Status(ctx)
		switch _, known := faults[s.store.name]; {
		case isUnreachable(err) && mints(s.Provider): // a grant in the settings may be stored nowhere: the Keeper tells
		case !errors.Is(err, brokerauth.ErrRejected) && !isUnreachable(err):
			faults[s.store.name] = nil // what is wrong with one record the Keeper tells
		case !known:
			faults[s.store.name] = err
		}
		_, twice := found[st.Key]
		o, only := s.Provider.(onlyStored)
		switch {
		case st.MovedTo != "":
			skipped[st.Key] = fmt.Sprintf("it was moved to %s, %s", st.MovedTo, moment(st.MovedAt))
		case only && o.other:
			skipped[st.Key] = fmt.Sprintf("the settings name another app or base URL than this login's, %s…", shortened(st.Key))
		case only && o.fault != nil:
			skipped[st.Key] = "its app's settings cannot work: " + forPeople(o.fault)
			k.fault = errors.Join(k.fault, o.fault)
		case only:
			skipped[st.Key] = "its app's settings are not here"
		case !twice || quiet.goesTo(ctx, st.Key, s.store):
			found[st.Key] = s
		}
	}
	// A secret that is wrong opens no login, and a store that can be listed may be out of reach.
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		err = errors.Join(err, faults[name])
	}
	if err != nil {
		return err
	}
	for _, key := range sorted(found) {
		delete(skipped, key) // which is in another store
		k.keep(ctx, key, found[key])
	}
	for _, key := range sorted(skipped) {
		why := skipped[key]
		if _, kept := k.kept[key]; !kept && k.skipped[key] != why {
			fmt.Fprintf(k.err, "brokerauth: %s: not kept, because %s\n", k.who(key), why)
		}
	}
	for key, s := range k.kept {
		if _, still := found[key]; still {
			continue
		}
		k.leave(key, s)
		k.mu.Lock()
		delete(k.ends, key)
		delete(k.over, key)
		k.mu.Unlock()
		if why := skipped[key]; why != "" {
			k.announce("%s: no longer kept, because %s", k.who(key), why)
		} else {
			k.announce("%s: logged out or moved, or its settings are gone: no longer kept", k.who(key))
		}
	}
	k.skipped = skipped
	return nil
}

// sorted returns m's keys in an order that does not change.
func sorted[V any](m map[brokerauth.Key]V) []brokerauth.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b brokerauth.Key) int { return cmp.Compare(a.String(), b.String()) })
}

// goesTo reports whether store is the one that commands take for key's login, of several that have it.
func (a *app) goesTo(ctx context.Context, key brokerauth.Key, store keptStore) bool {
	one := *a
	one.profile = key.Profile
	usual, err := one.openStore(ctx, one.found, key.Provider)
	return err == nil && usual.name == store.name
}

// keep keeps the login of s from now on, and ends what has kept it under other settings or in another store.
func (k *keeping) keep(ctx context.Context, key brokerauth.Key, s placed) {
	if old, ok := k.kept[key]; ok {
		moved, changed := old.store.name != s.store.name, old.Provider.Info().Settings != s.Provider.Info().Settings
		if !moved && !changed {
			return
		}
		k.leave(key, old)
		if changed {
			k.mu.Lock()
			delete(k.over, key)
			k.mu.Unlock()
		}
	}
	s.Observe = k.observer(s.Session)
	k.kept[key] = s
	k.tellEnd(ctx, s.Session)
	k.keeper.Add(s.Session)
}

// leave ends s, whose token is saved by then or cannot be.
func (k *keeping) leave(key brokerauth.Key, s placed) {
	k.keeper.Remove(s.Session)
	if err := s.Close(); err != nil {
		fmt.Fprintf(k.err, "brokerauth: %v\n", err)
	}
	delete(k.kept, key)
}

// tellEnd tells when somebody must log in, if that is news.
func (k *keeping) tellEnd(ctx context.Context, s *brokerauth.Session) {
	st, err := s.Status(ctx)
	if err != nil || !st.LoggedIn && !mints(s.Provider) {
		return // the Keeper tells
	}
	b, _ := findBroker(st.Key.Provider)
	k.mu.Lock()
	last, known := k.ends[st.Key]
	k.ends[st.Key] = st.LoginBy
	k.mu.Unlock()
	switch {
	case known && last.Equal(st.LoginBy):
	case b.endless:
		k.announce("%s: kept; log in again: never", k.who(st.Key))
	case st.LoginBy.IsZero():
		k.announce("%s: kept; the login has no end that is known", k.who(st.Key))
	case time.Until(st.LoginBy) > 0:
		k.announce("%s: kept; log in again by %s, in %s", k.who(st.Key), moment(st.LoginBy), inWords(time.Until(st.LoginBy)))
		if warning := inTradingWeek(st.LoginBy, time.Now()); warning != "" {
			k.announce("  %s", warning)
		}
	default:
		k.announce("%s: kept; logging in again was due %s", k.who(st.Key), moment(st.LoginBy))
	}
}

// observer tells a person what they must know and do.
func (k *keeping) observer(s *brokerauth.Session) func(brokerauth.Event) {
	next := k.app.observer()
	return func(e brokerauth.Event) {
		next(e)
		name, login := k.who(e.Key), k.line("login", e.Key.Provider, e.Key.Profile)
		switch e.Kind {
		case "refreshed", "adopted":
			k.mu.Lock()
			delete(k.over, e.Key)
			k.mu.Unlock()
			k.tellEnd(context.Background(), s)
		case "deadline":
			k.alarm(e, "deadline", fmt.Sprintf("%s: log in again by %s, in %s: run: %s", name, moment(e.LoginBy), inWords(time.Until(e.LoginBy)), login))
		case "failed", "unsaved":
			gone := errors.Is(e.Err, brokerauth.ErrLoginRequired) && isGone(s)
			k.mu.Lock()
			first := !k.over[e.Key]
			k.over[e.Key] = k.over[e.Key] || final(e.Err) && !gone
			e.LoginBy = k.ends[e.Key]
			k.mu.Unlock()
			switch {
			case gone:
				select {
				case k.again <- struct{}{}:
				default:
				}
			case !final(e.Err):
				fmt.Fprintf(k.err, "brokerauth: %v\n", e.Err)
			case !first:
			case errors.Is(e.Err, brokerauth.ErrLoginRequired):
				k.alarm(e, "ended", fmt.Sprintf("%s: the login has ended: run: %s", name, login))
			default:
				k.alarm(e, "rejected", fmt.Sprintf("%s: %v", name, e.Err))
			}
		}
	}
}

// isGone reports whether somebody has taken the login of s away, or to another place, where it goes on.
func isGone(s *brokerauth.Session) bool {
	st, err := s.Status(context.Background())
	return err == nil && (st.KeptAs == "" || st.MovedTo != "")
}

// final reports whether err needs a person.
func final(err error) bool {
	return errors.Is(err, brokerauth.ErrLoginRequired) || errors.Is(err, brokerauth.ErrRejected)
}

// alarm tells a person that something is to be done, and runs the command for it.
func (k *keeping) alarm(e brokerauth.Event, kind, message string) {
	k.announce("%s", printableText(message))
	if k.onDeadline == "" {
		return
	}
	env := []string{"BROKERAUTH_EVENT=" + kind, "BROKERAUTH_BROKER=" + e.Key.Provider,
		"BROKERAUTH_PROFILE=" + forShell(e.Key.Profile, runtime.GOOS), "BROKERAUTH_LOGIN_BY=", "BROKERAUTH_WITHIN=",
		"BROKERAUTH_MESSAGE=" + forShell(strings.ReplaceAll(printableText(message), "\n", "; "), runtime.GOOS)}
	if !e.LoginBy.IsZero() {
		env[3] += e.LoginBy.UTC().Format(time.RFC3339)
	}
	if e.Within > 0 {
		env[4] += fmt.Sprintf("%dh", e.Within/time.Hour)
	}
	k.commands.Go(func() {
		k.oneByOne.Lock()
		defer k.oneByOne.Unlock()
		ctx, cancel := context.WithTimeoutCause(k.running, time.Minute, errors.New("it was ended, because it took longer than a minute"))
		defer cancel()
		shell := []string{"sh", "-c"}
		if runtime.GOOS == "windows" {
			shell = []string{cmp.Or(os.Getenv("ComSpec"), "cmd"), "/c"}
		}
		cmd := exec.CommandContext(ctx, shell[0], shell[1], k.onDeadline)
		cmd.Env = append(withoutSettings(os.Environ()), env...)
		cmd.Stdout, cmd.Stderr, cmd.WaitDelay = k.err, k.err, time.Second
		asGroup(cmd)
		if err := cmd.Run(); err != nil {
			fmt.Fprintf(k.err, "brokerauth: --on-deadline: %v\n", cmp.Or(context.Cause(ctx), err))
		}
	})
}

// forShell is text from outside as a shell's command may use it. What sh puts in a variable's place it does not read as a
// command; Windows' cmd does, and a broker's words or the profile of a store that others share must not begin one.
func forShell(text, system string) string {
	if system != "windows" {
		return text
	}
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("&|<>^%!\"\r\n", r) {
			return ' '
		}
		return r
	}, text)
}

// withoutSettings is an environment without this program's settings, of which some are secrets, and the password that
// a PostgreSQL store may have from there.
func withoutSettings(env []string) []string {
	var kept []string
	for _, pair := range env {
		name, _, _ := strings.Cut(pair, "=")
		if upper := strings.ToUpper(name); name == "BROWSER" || upper != "PGPASSWORD" && !isSetting(upper) {
			kept = append(kept, pair)
		}
	}
	return kept
}
