package schwab_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/brokerauth/brokerauth/providers/schwab"
)

// inProcess stands in for Schwab, without a network.
type inProcess struct{}

func (inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := `{"expires_in":1800,"token_type":"Bearer","scope":"api","refresh_token":"R1","access_token":"A1"}`
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
}

func Example() {
	app, err := schwab.New(schwab.Config{
		AppKey: "my-app-key", AppSecret: "my-app-secret",
		CallbackURL: "https://127.0.0.1:8182",
		Transport:   inProcess{},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	login, err := app.Begin(ctx) // the user opens login.URL, logs in and comes back
	if err != nil {
		fmt.Println(err)
		return
	}
	token, err := app.Complete(ctx, login, "https://127.0.0.1:8182/?code=C0.abc%40&session=1&state="+login.State)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("access for", token.Expiry.Sub(token.Issued))
	fmt.Println("log in again after", token.LoginBy.Sub(token.LoggedInAt))
	// Output:
	// access for 30m0s
	// log in again after 168h0m0s
}
