package emulator_test

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

func TestWeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broker := emulator.Schwab(t)
		session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
		defer session.Close()
		if err := session.Login(t.Context(), broker.Approve); err != nil {
			t.Fatal(err)
		}
		api := session.Client(&http.Client{Transport: broker})

		time.Sleep(31 * time.Minute) // the access token's life is over
		resp, err := api.Get("https://api.schwabapi.com/trader/v1/accounts/accountNumbers")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		refreshes := 0
		for _, r := range broker.Requests() {
			if r.GrantType == "refresh_token" {
				refreshes++
			}
		}
		if resp.StatusCode != http.StatusOK || refreshes != 1 {
			t.Errorf("an expired token: %s after %d refreshes", resp.Status, refreshes)
		}

		time.Sleep(7 * 24 * time.Hour) // and now the login's
		if _, err := session.Token(t.Context()); !errors.Is(err, brokerauth.ErrLoginRequired) {
			t.Errorf("after the seventh day: %v", err)
		}
	})
}

// The package comment shows TestWeek as it stands here.
func TestWeekIsDocumented(t *testing.T) {
	code, err := os.ReadFile("week_test.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("emulator.go")
	if err != nil {
		t.Fatal(err)
	}
	_, test, _ := strings.Cut(string(code), "\nfunc TestWeek(")
	test, _, found := strings.Cut(test, "\n}\n")
	var comment strings.Builder
	for line := range strings.Lines("func TestWeek(" + test + "\n}\n") {
		if line == "\n" {
			comment.WriteString("//\n")
		} else {
			comment.WriteString("//\t" + line)
		}
	}
	if !found || !strings.Contains(string(page), comment.String()) {
		t.Errorf("the package comment shows another TestWeek than:\n%s", comment.String())
	}
}
