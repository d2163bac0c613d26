package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/porting"
)

func (a *app) exportCommand() *cobra.Command {
	var (
		move, duplicate bool
		format          string
	)
	cmd := &cobra.Command{
		Use:   "export BROKER --move|--copy",
		Short: "Hand a login to another machine, or to schwab-py",
		Long: "Write a login with its age to standard output, which is secret and must be no terminal:\n\n" +
			"    brokerauth export schwab --move > FILE\n" +
			"    brokerauth export schwab --copy | ssh HOST brokerauth import - --broker schwab && brokerauth logout schwab\n\n" +
			"With --move the login ends here once it is written, and status and token say where it went. If it never " +
			"arrived, a person must log in again. --copy leaves it here, too: then only one of the two " +
			"may go on to refresh it. ssh takes a login before the other machine has looked whether it can, so copy it there, " +
			"and log out here once it has arrived: that only forgets it, and asks no broker.\n\n" +
			"The other machine needs the same settings of the app and a store that can save: where no keyring is running, as on most " +
			"servers, give import a --store, too, such as --store disk. It proves both before it reads the login, if --broker is given. " +
			"The profile does not go along: give import its --profile.",
		Args:      oneBroker,
		ValidArgs: brokerNames(),
	}
	flags := cmd.Flags()
	flags.BoolVar(&move, "move", false, "end the login here once it is written")
	flags.BoolVar(&duplicate, "copy", false, "leave the login here, too")
	flags.StringVar(&format, "format", portable, "whose format to write: brokerauth or schwab-py")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		b, err := findBroker(args[0])
		if err != nil {
			return err
		}
		a.broker = b.name
		write := porting.Export
		switch {
		case move == duplicate:
			return usageError{errors.New("choose --move, or --copy and log out here once it has arrived: a login must have one home")}
		case format == "schwab-py" && b.name != "schwab":
			return usageError{fmt.Errorf("schwab-py has no logins at %s: leave --format out", b.name)}
		case format == "schwab-py":
			write = func(_ brokerauth.Info, t *brokerauth.Token) ([]byte, error) { return porting.ExportSchwabPy(t) }
		case format != portable:
			return usageError{fmt.Errorf("no format is called %q: there are brokerauth and schwab-py", format)}
		case b.name == "tdameritrade":
			return usageError{errors.New("TD Ameritrade ended in May 2024: there is nothing to move: run: brokerauth migrate")}
		}
		settled, err := a.secretOutput(ctx)
		if err != nil {
			return err
		}
		s, err := a.exported(ctx, b)
		if err != nil {
			return err
		}
		written := false
		hand := func(t *brokerauth.Token) error {
			data, err := write(s.Provider.Info(), t)
			if err == nil {
				_, err = a.out.Write(data)
			}
			if err == nil {
				written = true
				err = settled()
			}
			return err
		}
		// ended closes s. Nothing takes back what is in a pipe, so whoever interrupts the wait for its reader must know.
		ended := func(err error) error {
			if err = closed(s, err); written && errors.Is(err, context.Canceled) {
				err = errors.Join(err, fmt.Errorf("%s: the login stays here, and whoever reads the pipe has it, too: if somebody does, "+
					"delete one of the two, since whoever refreshes it ends it for the other", b.name))
			}
			return err
		}
		if move {
			if err := ended(s.Move(ctx, "whoever read the output of brokerauth export", hand)); err != nil {
				return err
			}
			fmt.Fprintf(a.err, "brokerauth: %s's login has ended here: if it never arrived, log in again: run: %s\n", b.name, a.remedy())
			return nil
		}
		t, err := s.Token(ctx)
		if err == nil {
			if err = hand(t); err != nil {
				err = fmt.Errorf("%s: the login was not written: %w", b.name, err)
			}
		}
		if err := ended(err); err != nil {
			return err
		}
		fmt.Fprintf(a.err, "brokerauth: warning: %s's login is in two places now, and whoever refreshes it ends it for the other: delete one\n", b.name)
		return nil
	})
	return cmd
}

// exported opens the Session of the one login that can be handed on.
func (a *app) exported(ctx context.Context, b broker) (*brokerauth.Session, error) {
	sessions, _, err := a.stored(ctx, b)
	if err != nil {
		return nil, err
	}
	s := sessions[0]
	if len(sessions) > 1 {
		return nil, usageError{fmt.Errorf("%s: several apps' logins are stored: set %s to say which to export", b.name, b.settings[0].name)}
	}
	if mints(s.Provider) {
		return nil, usageError{fmt.Errorf("%s: the grant stands in the settings: set them on the other machine, too", b.name)}
	}
	st, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	if !st.LoggedIn && st.MovedTo != "" {
		_, err := s.Token(ctx) // says where it went
		return nil, err
	}
	return s, due(b.name, st, 0)
}

// secretOutput makes sure that what is written to standard output is not shown, nor left for others to read. settled waits
// until what was written, which may be the only copy, is where it should be.
func (a *app) secretOutput(ctx context.Context) (settled func() error, err error) {
	settled = func() error { return nil }
	w, _ := a.out.(*answer)
	if w == nil {
		return settled, nil
	}
	f, _ := w.w.(*os.File)
	if f == nil {
		return settled, nil
	}
	if term.IsTerminal(int(f.Fd())) {
		return nil, usageError{errors.New("a login is secret and not shown on a terminal: send it on to a file or another program")}
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if null, err := os.Stat(os.DevNull); err == nil && os.SameFile(info, null) {
		return nil, usageError{errors.New("standard output goes nowhere, and so would the login: send it to a file or another program")}
	}
	switch {
	case info.Mode()&fs.ModeNamedPipe != 0:
		return func() error { return taken(ctx, f) }, nil // an import that cannot work ends without having read it
	case !info.Mode().IsRegular():
		return settled, nil
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		if err := f.Chmod(0o600); err != nil {
			return nil, fmt.Errorf("other users could read the file: %w", err)
		}
	}
	return f.Sync, nil
}
