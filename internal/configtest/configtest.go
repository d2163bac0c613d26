// Package configtest has what the tests of all providers' configurations share.
package configtest

import (
	"net/url"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth"
)

// Maker is a provider's New, and what must hold of it.
type Maker[C any] struct {
	New      func(C) (brokerauth.Provider, error)
	Callback func(C) string   // the redirect URL in a configuration
	Secrets  func(C) []string // what no error may tell
	Prefix   string           // of each fault
}

// Run checks that a provider is made, or each fault of the configuration named on a line of its own. A case is a change
// to a sound configuration, how many faults it makes, and what is said of them.
func (m Maker[C]) Run(t *testing.T, sound C, cases []struct {
	Name   string
	Change func(*C)
	Faults int
	Says   string
}) {
	t.Helper()
	for _, test := range cases {
		t.Run(test.Name, func(t *testing.T) {
			c := sound
			test.Change(&c)
			err := m.Check(t, c)
			n := 0
			if err != nil {
				n = len(strings.Split(err.Error(), "\n"))
				if !strings.Contains(err.Error(), test.Says) {
					t.Errorf("%v does not say %q", err, test.Says)
				}
			}
			if n != test.Faults {
				t.Errorf("%d faults, want %d: %v", n, test.Faults, err)
			}
		})
	}
}

// Check makes a provider of c. It must be whole, or the error must name faults and no secret.
func (m Maker[C]) Check(t *testing.T, c C) error {
	t.Helper()
	p, err := m.New(c)
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !strings.HasPrefix(line, m.Prefix) {
				t.Errorf("the fault %q does not say whose it is", line)
			}
		}
		for _, secret := range m.Secrets(c) {
			if len(secret) >= 8 && strings.Contains(err.Error(), secret) {
				t.Errorf("the error tells %q: %v", secret, err)
			}
		}
		return err
	}
	info := p.Info()
	if err := (brokerauth.Key{Provider: info.Name, Identity: info.Identity, Profile: "default"}).Validate(); err != nil || info.Settings == "" {
		t.Errorf("%+v makes no key of a login: %v", info, err)
	}
	pages, ok := p.(brokerauth.LoginProvider)
	if !ok {
		return nil
	}
	login, err := pages.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	page, err := url.Parse(login.URL)
	if err != nil {
		t.Fatal(err)
	}
	if want := m.Callback(c); login.RedirectURL != want || page.Query().Get("redirect_uri") != want {
		t.Errorf("the callback %q was rewritten: %q, and %q at the login page", want, login.RedirectURL, page.Query().Get("redirect_uri"))
	}
	return nil
}
