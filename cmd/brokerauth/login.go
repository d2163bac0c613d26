package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
)

func (a *app) loginCommand() *cobra.Command {
	timeout := period(5 * time.Minute)
	var (
		flow, browser string
		within        period
		start         bool
		finish        string
	)
	cmd := &cobra.Command{
		Use:   "login BROKER",
		Short: "Log in by a browser",
		Long: "Log in by a browser, and keep the login.\n\n" +
			"The flow auto suits the place: it listens for the browser's answer where it can, and takes a pasted address.\n\n" +
			"Where nobody can wait for a person, as in a notebook, a container or a chat, --start prints the address to log in at,\n" +
			"and --finish -, run later, reads the address that the browser came back to from standard input.\n\n" +
			"tastytrade has such a login for partners' apps only, which have a callback URL. Else this asks for the client secret and " +
			"the grant, tries them, and keeps them; those that are set it tries only.",
		Args:      oneBroker,
		ValidArgs: brokerNames(),
	}
	flags := cmd.Flags()
	flags.StringVar(&flow, "flow", "auto", "how to reach a browser: auto, browser or paste")
	flags.Var(&within, "within", "do nothing while the login lives longer than that")
	flags.Var(&timeout, "timeout", "how long to wait for the person; 0: for ever")
	flags.StringVar(&browser, "browser", "", "the program that opens an address, or none (default $BROWSER, or the system's)")
	flags.BoolVar(&start, "start", false, "only print the login page's address; --finish does the rest, within an hour")
	flags.StringVar(&finish, "finish", "", "finish what --start began: - reads the address that the browser came back to")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		steps := cmd.Flags().Changed("start") || cmd.Flags().Changed("finish")
		for _, other := range []string{"flow", "browser", "within"} {
			if steps && cmd.Flags().Changed(other) {
				return usageError{fmt.Errorf("--%s is not for a login in two steps: leave it out, or --start and --finish", other)}
			}
		}
		if cmd.Flags().Changed("start") && cmd.Flags().Changed("finish") {
			return usageError{errors.New("--start and --finish are two runs: give one of them")}
		}
		if cmd.Flags().Changed("finish") && finish != "-" {
			return usageError{errors.New("--finish takes only -, and the address from standard input, as other users see what is in a command line")}
		}
		shown := &struct{ io.Writer }{a.err} // the screen comes when the login waits
		options := &flows.Options{Out: shown, Timeout: time.Duration(timeout)}
		if timeout == 0 {
			options.Timeout = -1
		}
		if browser != "" && browser != "none" && !runnable(browser) {
			return usageError{fmt.Errorf("--browser %q: there is no such program", browser)}
		}
		b, err := findBroker(args[0])
		if err != nil {
			return err
		}
		a.broker = b.name
		if err := a.ended(ctx, b); err != nil {
			return err
		}
		a.attended = newPrompt(a.in, a.err) != nil
		found, err := a.settings()
		if err != nil {
			return err
		}
		grants, err := found.grants(b)
		if err != nil {
			return err
		}
		if grants {
			for _, flag := range []string{"flow", "browser", "start", "finish"} {
				if cmd.Flags().Changed(flag) {
					return usageError{fmt.Errorf("%s has no login page: leave --%s out", b.name, flag)}
				}
			}
			return a.loginGrant(ctx, b, cmd.Flags().Changed("within"))
		}
		switch {
		case start:
			return a.startLogin(ctx, b)
		case finish != "":
			return a.finishLogin(ctx, b, options.Timeout)
		}
		if browser == "" {
			if browser, err = found.get("BROWSER"); err != nil {
				return usageError{err}
			}
		}
		switch browser {
		case "":
		case "none":
			options.Open = func(context.Context, string) error { return nil }
		default:
			os.Setenv("BROWSER", browser) // where package flows looks
		}
		var f brokerauth.Flow
		switch flow {
		case "auto":
			f = flows.Auto(options)
		case "browser":
			f = flows.Browser(options)
		case "paste":
			f = flows.Paste(options)
		default:
			return usageError{fmt.Errorf("no flow is called %q: there are auto, browser and paste", flow)}
		}
		s, store, asked, err := a.open(ctx, b, newPrompt(a.in, a.err))
		if err != nil {
			return err
		}
		asking, back := false, false
		counted := func(ctx context.Context, l *brokerauth.Login, finish func(context.Context, string) error) error {
			asking = true
			out, end := a.screen(options.Timeout)
			shown.Writer = out
			defer end()
			err := f(ctx, l, func(ctx context.Context, callback string) error {
				back = true
				return finish(ctx, callback)
			})
			if back {
				return err
			}
			return advised(err, flow == "paste")
		}
		if cmd.Flags().Changed("within") {
			// A login that cannot live so long would be asked for anew by each run.
			if st, err := s.Status(ctx); err == nil && !st.LoginBy.IsZero() && !st.LoggedInAt.IsZero() {
				if life := st.LoginBy.Sub(st.LoggedInAt); time.Duration(within) >= life {
					return closed(s, usageError{fmt.Errorf("%s's logins live %s: none lives longer than %s",
						b.name, inWords(life), inWords(time.Duration(within)))})
				}
			}
			err = s.Ensure(ctx, counted, time.Duration(within))
		} else {
			err = s.Login(ctx, counted)
		}
		if err = closed(s, err); err != nil {
			if asking && !back && b.stuck != "" && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
				// Nobody came back: the broker's page may have said why, to a person who does not know what it means.
				fmt.Fprintf(a.err, "\n%sSee %stroubleshooting.md\n", b.stuck, docs)
			}
			if errno, ok := errors.AsType[syscall.Errno](err); ok && !asking && !errors.Is(err, brokerauth.ErrUnavailable) {
				// It is the store's, which names a file that nobody knows.
				return fmt.Errorf("%s: nobody was asked to log in, because a login cannot be kept in %s: %w: %s",
					b.name, store.where(s), errno, cmp.Or(mend(errno), "free space there and make it writable")+elsewhere)
			}
			if err = a.loginEnded(ctx, b, s, err); err != nil {
				return err
			}
		}
		if !asking {
			st, err := s.Status(context.WithoutCancel(ctx))
			if err != nil {
				return err
			}
			a.say("%s: still logged in: %s", a.who(st.Key), clocks(st))
			return nil
		}
		return a.loggedIn(ctx, b, s, store, asked)
	})
	return cmd
}

// loginEnded is err, of a login with s, which is closed; or why the new login could not be saved, if that is all that is wrong;
// or nil, if it was saved later than Login could wait for.
func (a *app) loginEnded(ctx context.Context, b broker, s *brokerauth.Session, err error) error {
	st, statusErr := s.Status(context.WithoutCancel(ctx))
	switch last := a.last.Load(); {
	case err == nil, last == "saved":
		return nil
	case last == "unsaved" && st.SaveError != nil:
	case errors.Is(err, brokerauth.ErrLoginRequired) && statusErr == nil && !st.LoginRequired(0):
		return stillIn{err}
	default:
		return err
	}
	cause := cmp.Or(errors.Unwrap(st.SaveError), st.SaveError)
	todo := mend(cause)
	if todo != "" {
		todo += ", then "
	}
	if b.afterLogin != "" {
		todo = strings.TrimSuffix(strings.ToLower(b.afterLogin[:1])+b.afterLogin[1:], ".") + ": " + todo
	}
	return fmt.Errorf("%s: the new login could not be saved, and is lost: %s: %srun: %s", b.name, forPeople(cause), todo, a.remedy())
}

// stillIn is why nobody logged in, where an earlier login lives on.
type stillIn struct{ error }

func (e stillIn) Unwrap() error { return e.error }

// loggedIn tells of a login that has just been saved. The settings asked were typed.
func (a *app) loggedIn(ctx context.Context, b broker, s *brokerauth.Session, store keptStore, asked []string) error {
	st, err := s.Status(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	a.remember(context.WithoutCancel(ctx), st.Key, store)
	a.say("%s: logged in: %s", a.who(st.Key), clocks(st))
	a.say("Kept in %s.", store.keptAs(st.KeptAs))
	if b.afterLogin != "" {
		a.say("%s", b.afterLogin)
	}
	if len(asked) > 0 {
		a.say("Later runs need %s, too: set them %s.", strings.Join(asked, " and "), places(a.profile))
	}
	return nil
}

// advised is what a flow cannot do, in this command's words.
func advised(err error, pasting bool) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) && pasting:
		return usageError{errors.New("nobody can paste here, as there is no terminal: run it in one, leave --flow paste out, or log in in two steps with --start")}
	case errors.Is(err, fs.ErrNotExist):
		return usageError{errors.New("nobody can paste here, as there is no terminal: run it in one, register https://127.0.0.1:8182, or log in in two steps with --start")}
	case errors.Is(err, errors.ErrUnsupported):
		return usageError{fmt.Errorf("%w: to paste, give --flow paste", err)}
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: to paste, give --flow paste", err)
	}
	return err
}

// runnable reports whether browsers, written as in $BROWSER, names a program that there is.
func runnable(browsers string) bool {
	return slices.ContainsFunc(filepath.SplitList(browsers), func(browser string) bool {
		program, _, _ := strings.Cut(strings.TrimSpace(browser), " ")
		_, err := exec.LookPath(browser)
		if err != nil {
			_, err = exec.LookPath(program)
		}
		return err == nil
	})
}

// say is a line of the answer.
func (a *app) say(format string, args ...any) {
	io.WriteString(a.out, printableText(fmt.Sprintf(format+"\n", args...)))
}

// who names a login, on one line: in a store that others write, too, a name may be anything.
func (a *app) who(key brokerauth.Key) string {
	name := key.Provider
	if key.Profile != "default" {
		name += ", profile " + key.Profile
	}
	return strings.ReplaceAll(name, "\n", " ")
}
