package emulator_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"golang.org/x/oauth2"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/providers/authcode"
	"github.com/brokerauth/brokerauth/storage/memory"
)

// What a trading program does when its login has died. In a test, emulator.Schwab(t) is the broker.
func Example() {
	broker, err := emulator.New("schwab", emulator.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()
	fmt.Println("logged in:", session.Login(ctx, broker.Approve) == nil)

	broker.RevokeLogins()
	_, err = session.Refresh(ctx, nil)
	fmt.Println("a person must log in:", errors.Is(err, brokerauth.ErrLoginRequired))

	fmt.Println("logged in:", session.Login(ctx, broker.Approve) == nil)
	api := session.Client(&http.Client{Transport: broker})
	resp, err := api.Get("https://api.schwabapi.com/trader/v1/accounts/accountNumbers")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println("accounts:", resp.Status)
	// Output:
	// logged in: true
	// a person must log in: true
	// logged in: true
	// accounts: 200 OK
}

// A personal grant at tastytrade: nobody logs in, and a grant that was deleted is for a person to replace.
func ExampleTastytrade() {
	broker, err := emulator.New("tastytrade", emulator.Config{}) // in a test, emulator.Tastytrade(t)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()
	token, err := session.Token(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("access for", token.Expiry.Sub(token.Issued), "to", token.Extra["scope"])

	broker.RevokeLogins()
	_, err = session.Refresh(ctx, nil)
	fmt.Println("settings must change:", errors.Is(err, brokerauth.ErrRejected))
	// Output:
	// access for 15m0s to read trade openid
	// settings must change: true
}

// example stands for a test's t.
type example struct{}

func (example) Helper()           {}
func (example) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// A broker of one's own, whose provider keeps the broker's real addresses.
func ExampleOAuth2() {
	broker := emulator.OAuth2(example{}, func(transport http.RoundTripper) (brokerauth.Provider, error) {
		return authcode.New(authcode.Config{
			Info: brokerauth.Info{Name: "mybroker", BaseURL: "https://api.mybroker.example",
				Origins: []string{"https://api.mybroker.example"}},
			AuthURL:     "https://login.mybroker.example/authorize",
			TokenURL:    "https://api.mybroker.example/token",
			AuthStyle:   oauth2.AuthStyleInParams,
			PKCE:        true,
			ClientID:    "my-app",
			RedirectURL: "https://127.0.0.1:8182",
			Transport:   transport,
		})
	})
	broker.Handle("GET /accounts", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `["00000001"]`)
	}))
	ctx := context.Background()
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()
	if err := session.Login(ctx, broker.Approve); err != nil {
		fmt.Println(err)
		return
	}
	resp, err := session.Client(&http.Client{Transport: broker}).Get("https://api.mybroker.example/accounts")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	accounts, err := io.ReadAll(resp.Body)
	fmt.Println(resp.Status, string(accounts), err)

	fmt.Println("declined:", session.Login(ctx, broker.Deny) != nil)
	// Output:
	// 200 OK ["00000001"] <nil>
	// declined: true
}

// A program's own API reply: the emulator has the broker's login, and few of its API calls.
func ExampleBroker_Handle() {
	broker, err := emulator.New("schwab", emulator.Config{}) // in a test, emulator.Schwab(t)
	if err != nil {
		fmt.Println(err)
		return
	}
	broker.Handle("GET /trader/v1/accounts/{hash}/orders", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `[{"account": %q, "status": "FILLED"}]`, r.PathValue("hash"))
	}))
	ctx := context.Background()
	session := &brokerauth.Session{Provider: broker.Provider(), Store: new(memory.Store)}
	defer session.Close()
	if err := session.Login(ctx, broker.Approve); err != nil {
		fmt.Println(err)
		return
	}
	api := session.Client(&http.Client{Transport: broker}) // session.Client(nil) would call the real broker
	resp, err := api.Get("https://api.schwabapi.com/trader/v1/accounts/ABC123/orders")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	orders, err := io.ReadAll(resp.Body)
	fmt.Println(resp.Status, string(orders), err)
	// Output: 200 OK [{"account": "ABC123", "status": "FILLED"}] <nil>
}

// Two bad minutes of a broker, for a program that should sit them out.
func ExampleBroker_Inject() {
	broker, err := emulator.New("schwab", emulator.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	broker.Inject(
		emulator.Fault{Status: 503, Times: 2},
		emulator.Fault{Status: 429, RetryAfter: "30"},
	)
	client := &http.Client{Transport: broker}
	for range 4 {
		resp, err := client.Post("https://api.schwabapi.com/v1/oauth/token", "", nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		resp.Body.Close()
		fmt.Printf("%d %q\n", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	// Output:
	// 503 ""
	// 503 ""
	// 429 "30"
	// 401 ""
}
