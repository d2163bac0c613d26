package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth/porting"
)

func (a *app) migrateCommand() *cobra.Command {
	var (
		asJSON              bool
		state, id, callback string
	)
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Tell what changes from TD Ameritrade to Schwab",
		Long: "Tell what a program made for TD Ameritrade has to change for Schwab, with the new settings that follow from the " +
			"old ones, TD_CLIENT_ID or TD_CONSUMER_KEY, TD_CALLBACK_URL, TD_CONFIG_DIR and TD_STORE_TOKENS, and what " +
			"remains for a person to do. It changes nothing.\n\n" +
			"It exits with 0 when nothing is left to do, and with 1 until then.",
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.BoolVar(&asJSON, "json", false, "print the findings as JSON")
	flags.StringVar(&state, "state", "", "the token file of the old program")
	flags.StringVar(&id, "client-id", "", "the old program's client id, if no setting has it")
	flags.StringVar(&callback, "callback", "", "the old program's callback URL, if no setting has it")
	cmd.RunE = a.action(func(ctx context.Context, _ []string) error {
		found, err := a.settings()
		if err != nil {
			return err
		}
		env := make(map[string]string)
		olds := []string{"TD_CLIENT_ID", "TD_CONSUMER_KEY", "TD_CALLBACK_URL", "TD_BASE_URL", "TD_CONFIG_DIR", "TD_STORE_TOKENS", "TD_LOG_LEVEL"}
		news := []string{"SCHWAB_APP_KEY", "SCHWAB_APP_SECRET", "SCHWAB_CALLBACK_URL", "SCHWAB_BASE_URL", "BROKERAUTH_STORE", "BROKERAUTH_LOG"}
		for _, name := range append(news, olds...) {
			if env[name], err = found.get(name); err != nil {
				return usageError{err}
			}
		}
		a.tell(found)
		if first, _, _ := strings.Cut(callback, ","); callback != "" { // TD Ameritrade took a list
			if u, err := url.Parse(strings.TrimSpace(first)); err != nil || u.Hostname() == "" && u.Scheme != "urn" {
				return usageError{fmt.Errorf("--callback %q is no URL: write it whole, such as http://localhost:8080", first)}
			}
		}
		env["TD_CLIENT_ID"] = cmp.Or(id, env["TD_CLIENT_ID"])
		env["TD_CALLBACK_URL"] = cmp.Or(callback, env["TD_CALLBACK_URL"])
		var old []byte
		if state != "" {
			file, err := readLogin(ctx, state)
			if err != nil {
				return err
			}
			old = file.data
		}
		findings := porting.Migrate(env, old)
		left := 0
		for _, f := range findings {
			if f.Todo != "" {
				left++
			}
		}
		none := old == nil && !slices.ContainsFunc(olds, func(name string) bool { return env[name] != "" })
		switch {
		case asJSON:
			if err := json.NewEncoder(a.out).Encode(findings); err != nil {
				return err
			}
		case none:
			a.say("Nothing of a program made for TD Ameritrade is set: there is no\n  %s\n%s, nor in a .env here.\n\n"+
				"Run this where the program runs, or tell of it:\n  brokerauth migrate --client-id ID --callback URL --state FILE\n"+
				"What changes for every program: %sporting-td-to-schwab.md", strings.Join(olds, ", "), places(a.profile), docs)
		default:
			a.sayFindings(findings, env)
		}
		switch {
		case left == 0:
			return nil
		case none:
			return errors.New("there is nothing of TD Ameritrade's to migrate here, and Schwab's settings are not complete")
		case left == 1:
			return errors.New("one thing is left to do")
		}
		return fmt.Errorf("%d things are left to do", left)
	})
	return cmd
}

// sayFindings tells what changes, then what to set that env does not have, then what to do.
func (a *app) sayFindings(findings []porting.Finding, env map[string]string) {
	var set, todo []string
	for _, f := range findings {
		a.say("%s\n  was: %s\n  is:  %s", f.Topic, f.TD, f.Schwab)
		if f.Value != "" && f.Value != env[f.Setting] {
			set = append(set, f.Setting+"="+f.Value)
		}
		if f.Todo != "" {
			todo = append(todo, f.Todo)
		}
	}
	for _, list := range []struct {
		heading string
		lines   []string
	}{{"Settings that follow from the old ones:", set}, {"Left to do:", todo}} {
		if len(list.lines) > 0 {
			a.say("\n%s\n  %s", list.heading, strings.Join(list.lines, "\n  "))
		}
	}
	if len(todo) == 0 {
		a.say("\nNothing is left to do.")
	}
}
