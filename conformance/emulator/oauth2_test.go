package emulator_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/providers/authcode"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// ownBroker makes a provider of one's own, whose client secret goes as style has it.
func ownBroker(style oauth2.AuthStyle, change ...func(c *authcode.Config)) func(http.RoundTripper) (brokerauth.Provider, error) {
	return func(transport http.RoundTripper) (brokerauth.Provider, error) {
		c := authcode.Config{
			Info:    brokerauth.Info{Name: "own", BaseURL: "https://api.example.com/v2", Origins: []string{"https://api.example.com"}, Margin: time.Minute},
			AuthURL: "https://login.example.com/auth", TokenURL: "https://token.example.com/token", AuthStyle: style, PKCE: true,
			ClientID: "own-app", ClientSecret: "own/secret+0123", RedirectURL: "https://127.0.0.1:8182/back", Transport: transport,
		}
		for _, f := range change {
			f(&c)
		}
		return authcode.New(c)
	}
}

func TestOAuth2(t *testing.T) {
	registered := emulator.Config{ClientID: "own-app", ClientSecret: "own/secret+0123", Rotate: true, AccessTTL: 90 * time.Second}
	for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams} {
		b := emulator.OAuth2(t, ownBroker(style), registered)
		b.Handle("GET /v2/accounts", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "[]") }))
		s := &brokerauth.Session{Provider: b.Provider(), Store: new(memory.Store)}
		defer s.Close()
		if err := s.Login(t.Context(), b.Deny); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a declined login: %v", err)
		}
		if err := s.Login(t.Context(), b.Approve); err != nil {
			t.Fatal(err)
		}
		first, err := s.Token(t.Context())
		if err != nil || !strings.HasPrefix(first.AccessToken, "emulated.") || first.Expiry.Sub(first.Issued) != 90*time.Second {
			t.Fatalf("%v, %v", first, err)
		}
		client := s.Client(&http.Client{Transport: b})
		for path, want := range map[string]int{"/v2/accounts": 200, "/v2/none": 404} {
			resp, err := client.Get("https://api.example.com" + path)
			if err != nil || resp.StatusCode != want {
				t.Fatalf("%s: %v, %v, want %d", path, resp, err, want)
			}
			resp.Body.Close()
		}
		second, err := s.Refresh(t.Context(), nil)
		if err != nil || second.RefreshToken == first.RefreshToken {
			t.Fatalf("%v, %v, want another refresh token", second, err)
		}
		// The old one again may be a thief's.
		if _, err := b.Provider().Refresh(t.Context(), first); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("a spent refresh token: %v", err)
		}
		if _, err := s.Refresh(t.Context(), nil); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("after a spent refresh token came back: %v", err)
		}
	}
}

func TestOAuth2Refuses(t *testing.T) {
	wrong := func(c *authcode.Config) { c.ClientSecret = "another-secret" }
	b := emulator.OAuth2(t, ownBroker(oauth2.AuthStyleInHeader, wrong), emulator.Config{ClientID: "own-app", ClientSecret: "own/secret+0123"})
	s := &brokerauth.Session{Provider: b.Provider(), Store: new(memory.Store)}
	defer s.Close()
	if err := s.Login(t.Context(), b.Approve); !errors.Is(err, brokerauth.ErrRejected) {
		t.Errorf("a wrong secret: %v", err)
	}

	b = emulator.OAuth2(t, ownBroker(oauth2.AuthStyleInParams))
	p := b.LoginProvider()
	one, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one.Secret = oauth2.GenerateVerifier()
	err = b.Approve(t.Context(), one, func(ctx context.Context, callback string) error {
		_, err := p.Complete(ctx, one, callback)
		return err
	})
	if !errors.Is(err, brokerauth.ErrLoginRequired) {
		t.Errorf("another verifier: %v", err)
	}
}

// fatal is a test that says what it failed of.
type fatal struct{ *testing.T }

func (fatal) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func TestOAuth2Unfit(t *testing.T) {
	for says, newProvider := range map[string]func(http.RoundTripper) (brokerauth.Provider, error){
		"client id": ownBroker(oauth2.AuthStyleInParams, func(c *authcode.Config) { c.ClientID = "" }),
		"one path":  ownBroker(oauth2.AuthStyleInParams, func(c *authcode.Config) { c.TokenURL = "https://token.example.com/auth" }),
		"no token call": func(http.RoundTripper) (brokerauth.Provider, error) {
			return ownBroker(oauth2.AuthStyleInParams, func(c *authcode.Config) { c.BaseURL = "http://127.0.0.1:1" })(refusing{})
		},
		"no login page": func(rt http.RoundTripper) (brokerauth.Provider, error) {
			return authcode.NewGrant(authcode.Config{Info: brokerauth.Info{Name: "own"}, TokenURL: "https://token.example.com/", Grant: "grant",
				AuthStyle: oauth2.AuthStyleInParams, Transport: rt})
		},
	} {
		func() {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, says) {
					t.Errorf("%s, want what says %q", said, says)
				}
			}()
			emulator.OAuth2(fatal{t}, newProvider)
		}()
	}
}

type refusing struct{}

func (refusing) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("no network")
}
