package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth"
)

func (a *app) tokenCommand() *cobra.Command {
	var (
		header, asJSON bool
		live           period
	)
	cmd := &cobra.Command{
		Use:   "token BROKER",
		Short: "Print a fresh access token",
		Long: "Print a fresh access token, renewed if need be. It never asks a person.\n\n" +
			"    brokerauth token schwab --header | curl -H @- https://api.schwabapi.com/…\n\n" +
			"keeps it out of the list of processes, which an argument would show to all users.",
		Args:      oneBroker,
		ValidArgs: brokerNames(),
	}
	flags := cmd.Flags()
	flags.BoolVar(&header, "header", false, "print the whole Authorization header")
	flags.BoolVar(&asJSON, "json", false, "print access_token, token_type and expires_at as JSON")
	flags.Var(&live, "for", "renew the token first unless it lives that long")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		if header && asJSON {
			return usageError{errors.New("choose --header or --json")}
		}
		return a.with(ctx, args[0], func(ctx context.Context, s *brokerauth.Session) error {
			t, err := s.Token(ctx)
			if err == nil && live > 0 {
				t, err = longer(ctx, s, t, time.Duration(live))
			}
			if err != nil {
				return err
			}
			kind := t.TokenType
			if kind == "" || strings.EqualFold(kind, "Bearer") {
				kind = "Bearer" // some brokers answer "bearer" and then expect "Bearer"
			}
			switch {
			case header:
				a.say("Authorization: %s %s", kind, t.AccessToken)
			case asJSON:
				var expires *time.Time
				if !t.Expiry.IsZero() {
					expires = &t.Expiry
				}
				return json.NewEncoder(a.out).Encode(struct {
					AccessToken string     `json:"access_token"`
					TokenType   string     `json:"token_type"`
					ExpiresAt   *time.Time `json:"expires_at"`
				}{t.AccessToken, kind, expires})
			default:
				a.say("%s", t.AccessToken)
			}
			return nil
		})
	})
	return cmd
}

// longer returns t, or a token that lives for d.
func longer(ctx context.Context, s *brokerauth.Session, t *brokerauth.Token, d time.Duration) (*brokerauth.Token, error) {
	found, err := s.TokenFor(ctx, d)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return nil, usageError{err}
	case err != nil:
		return nil, fmt.Errorf("no token that lives for %s, but without --for there is one for %s: %w", inWords(d), inWords(time.Until(t.Expiry)), err)
	}
	return found, nil
}

func (a *app) refreshCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "refresh BROKER",
		Short: "Renew the access token now",
		Long: "Renew the access token now, however fresh it is, to see it work. Programs have no need of it: " +
			"token renews by itself.",
		Args:      oneBroker,
		ValidArgs: brokerNames(),
	}
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		return a.with(ctx, args[0], func(ctx context.Context, s *brokerauth.Session) error {
			if _, err := s.Refresh(ctx, nil); err != nil {
				return err
			}
			st, err := s.Status(context.WithoutCancel(ctx))
			if err != nil {
				return err
			}
			a.say("%s: refreshed: %s", a.who(st.Key), clocks(st))
			return nil
		})
	})
	return cmd
}

func (a *app) logoutCommand() *cobra.Command {
	var identity string
	cmd := &cobra.Command{
		Use:   "logout BROKER",
		Short: "Delete the stored login",
		Long: "Delete every stored copy of the login. The broker is not told, as it has no way to be: what it issued ends " +
			"by itself, or with the next login.\n\n" +
			"It is the login of the app and base URL that the settings name. Status shows the identity of others.",
		Args:      oneBroker,
		ValidArgs: brokerNames(),
	}
	cmd.Flags().StringVar(&identity, "identity", "", "delete the login whose identity begins so, whatever the settings name")
	cmd.RunE = a.action(func(ctx context.Context, args []string) error {
		var (
			sessions []*brokerauth.Session
			store    keptStore
		)
		b, err := findBroker(args[0])
		switch a.broker = args[0]; {
		case cmd.Flags().Changed("identity"):
			sessions, store, err = a.identified(ctx, args[0], identity) // a program's own broker's, too
		case err == nil:
			sessions, store, err = a.stored(ctx, b)
		}
		if err != nil {
			return err
		}
		if len(sessions) > 1 {
			return usageError{fmt.Errorf("%s: several apps' logins are stored: give --identity with one of %s", a.broker, strings.Join(identities(sessions), ", "))}
		}
		for _, s := range sessions {
			st, statusErr := s.Status(ctx)
			if err := closed(s, s.Logout(ctx)); err != nil {
				return err
			}
			if st.KeptAs == "" && statusErr == nil {
				a.say("%s: nothing was stored.", a.who(st.Key))
				continue
			}
			a.say("%s: logged out: deleted %s.", a.who(st.Key), store.where(s))
			if end := cmp.Or(st.LoginBy, st.AccessExpiresAt); b.endless {
				a.say("The grant itself works until it is deleted at https://my.tastytrade.com.")
			} else if end.After(time.Now()) {
				a.say("What the broker issued ends by itself by %s, or with the next login.", moment(end))
			}
		}
		if cmd.Flags().Changed("identity") || store.name == "memory" {
			return nil
		}
		// A grant that login keeps is another login than one that the settings hold: nobody should believe it gone.
		keys, err := store.keys(ctx)
		if err != nil {
			return err
		}
		for _, key := range keys {
			if key.Provider == b.name && key.Profile == a.profile {
				a.say("%s: a login of another app, grant or base URL stays (%s…): to delete it, run: %s", a.who(key), shortened(key), a.deletion(key))
			}
		}
		return nil
	})
	return cmd
}
