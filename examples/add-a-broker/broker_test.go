package mybroker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	mybroker "github.com/brokerauth/brokerauth/examples/add-a-broker"
	"github.com/brokerauth/brokerauth/storage/memory"
)

const secret = "the-secret-of-the-app"

// newProvider makes the provider for the suite and for the emulator, which each answer its requests.
func newProvider(transport http.RoundTripper) (brokerauth.Provider, error) {
	return mybroker.New(mybroker.Config{
		ClientID: "the-app", ClientSecret: secret, CallbackURL: "https://127.0.0.1:8182", Transport: transport,
	})
}

func TestProvider(t *testing.T) {
	conformance.TestProvider(t, conformance.Harness{
		New:     newProvider,
		Secrets: []string{secret},
		Refusals: []conformance.Refusal{
			{Name: "session closed", Op: "refresh", Status: 400, Body: `{"error":"session_closed"}`, Kind: brokerauth.ErrLoginRequired, Says: []string{"log in again"}},
			{Name: "app suspended", Status: 403, Body: `{"error":"app_suspended","message":"See support"}`, Kind: brokerauth.ErrRejected, Code: "app_suspended"},
			{Name: "no agreement", Status: 403, Body: `{"message":"Please sign the Market Data Agreement"}`, Kind: brokerauth.ErrRejected, Says: []string{"under Data"}},
		},
	})
}

// TestLogin logs in, calls the API, and finds the login ended.
func TestLogin(t *testing.T) {
	broker := emulator.OAuth2(t, newProvider, emulator.Config{ClientID: "the-app", ClientSecret: secret, Rotate: true})
	broker.Handle("GET /v1/accounts", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `["00000001"]`)
	}))
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()
	if err := session.Login(t.Context(), broker.Approve); err != nil {
		t.Fatal(err)
	}
	resp, err := session.Client(&http.Client{Transport: broker}).Get(session.Provider.Info().BaseURL + "/v1/accounts")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || string(body) != `["00000001"]` {
		t.Errorf("%s, %s, %v", resp.Status, body, err)
	}

	broker.RevokeLogins()
	if _, err := session.Refresh(t.Context(), nil); !errors.Is(err, brokerauth.ErrLoginRequired) {
		t.Errorf("a revoked login: %v", err)
	}
}

func TestPrint(t *testing.T) {
	c := mybroker.Config{ClientID: "the-app", ClientSecret: secret}
	text, err := json.Marshal(c)
	if printed := fmt.Sprintf("%v %+v %#v", c, &c, c) + string(text) + c.LogValue().String(); err != nil || strings.Contains(printed, secret) {
		t.Errorf("%s, %v", printed, err)
	}
}

// TestGuide: what the guide shows stands here, to the letter.
func TestGuide(t *testing.T) {
	var files []string
	for _, name := range []string{"broker.go", "broker_test.go", "../../docs/add-a-broker.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, strings.ReplaceAll(string(text), "\r\n", "\n"))
	}
	blocks := strings.Split(files[2], "```go\n")[1:]
	for _, block := range blocks {
		block, _, _ = strings.Cut(block, "```")
		if !strings.Contains(files[0], block) && !strings.Contains(files[1], block) {
			t.Errorf("the guide shows what is not here:\n%s", block)
		}
	}
	if len(blocks) < 3 {
		t.Errorf("the guide shows %d pieces of the program", len(blocks))
	}
	if n := strings.Count(files[0], "\n"); n >= 80 {
		t.Errorf("a broker takes %d lines, want fewer than 80, as the guide says", n)
	}
}
