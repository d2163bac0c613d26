package emulator_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// accounts is a trading program at work: it asks a person to log in only where one must.
func accounts(ctx context.Context, s *brokerauth.Session, api *http.Client, ask brokerauth.Flow) (status string, err error) {
	if err := s.Ensure(ctx, ask, 12*time.Hour); err != nil {
		return "", err
	}
	resp, err := api.Get(s.Provider.Info().BaseURL + "/trader/v1/accounts/accountNumbers")
	if err != nil {
		return "", err
	}
	return resp.Status, resp.Body.Close()
}

// The test of a program's way back from a login that the broker ended early. In a test of yours, t is its *testing.T; in
// testing/synctest the token's life takes no time, so that it may be the broker's own 30 minutes.
func Example_relogin() {
	ctx := context.Background()
	broker := emulator.Schwab(t, emulator.Config{AccessTTL: time.Second})
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()
	api := session.Client(&http.Client{Transport: broker})
	fmt.Println(accounts(ctx, session, api, broker.Approve))

	broker.RevokeLogins() // as a changed password does
	time.Sleep(time.Second)
	_, err := accounts(ctx, session, api, broker.Deny) // a person who is not ready yet
	fmt.Println("login required:", errors.Is(err, brokerauth.ErrLoginRequired))
	fmt.Println(accounts(ctx, session, api, broker.Approve))
	// Output:
	// 200 OK <nil>
	// login required: true
	// 200 OK <nil>
}

var t failing

// failing is what an example has in the place of a *testing.T.
type failing struct{}

func (failing) Helper()           {}
func (failing) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
