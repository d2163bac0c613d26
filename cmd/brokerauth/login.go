package main

import (
	"context"
	"fmt"
	"os"
	"strings"
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
	)
	cmd := &cobra.Command{
		Use:   "login BROKER",
		Short: "Log in by a browser",
		Long: "Log in by a browser, and keep the login.\n\n" +
			"The flow auto suits the place: it listens for the browser's answer where it can, and takes a pasted address.",
		Args:      oneBroker,
		ValidArgs: brokerNames(),
	}
	flags := cmd.Flags()
	flags.StringVar(&flow, "flow", "auto", "how to reach a browser: auto, browser or paste")
	flags.Var(&within, "within", "do nothing while the login lives longer than that")
	flags.Var(&timeout, "timeout", "how long to wait for the person; 0: for ever")
	flags.StringVar(&browser, "browser", "", "the program that opens an address, or none (default $BROWSER, or the system's)")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		options := &flows.Options{Out: a.err, Timeout: time.Duration(timeout)}
		if timeout == 0 {
			options.Timeout = -1
		}
		switch browser {
		case "":
		case "none":
			options.Open = func(context.Context, string) error { return nil }
		default:
			os.Setenv("BROWSER", browser)
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
		b, err := findBroker(args[0])
		if err != nil {
			return err
		}
		a.broker = b.name
		s, store, asked, err := a.open(ctx, b, newPrompt(a.in, a.err))
		if err != nil {
			return err
		}
		asking := false
		counted := func(ctx context.Context, l *brokerauth.Login, finish func(context.Context, string) error) error {
			asking = true
			return f(ctx, l, finish)
		}
		if cmd.Flags().Changed("within") {
			err = s.Ensure(ctx, counted, time.Duration(within))
		} else {
			err = s.Login(ctx, counted)
		}
		if err = closed(s, err); err != nil {
			return err
		}
		st, err := s.Status(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		if !asking {
			a.say("%s: still logged in: %s", a.who(st.Key), clocks(st))
			return nil
		}
		a.say("%s: logged in: %s", a.who(st.Key), clocks(st))
		a.say("Kept in %s (%s).", st.KeptAs, store.how)
		if b.afterLogin != "" {
			a.say("%s", b.afterLogin)
		}
		if len(asked) > 0 {
			a.say("Later runs need %s, too: set them %s.", strings.Join(asked, " and "), places(a.profile))
		}
		return nil
	})
	return cmd
}

// say is a line of the answer.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) }

// who names a login.
func (a *app) who(key brokerauth.Key) string {
	if key.Profile == "default" {
		return key.Provider
	}
	return fmt.Sprintf("%s, profile %s", key.Provider, key.Profile)
}
