package tastytrade_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/brokerauth/brokerauth/providers/tastytrade"
)

// inProcess stands in for tastytrade, without a network.
type inProcess struct{}

func (inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := `{"access_token":"A1","token_type":"Bearer","expires_in":900}`
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
}

func Example() {
	app, err := tastytrade.New(tastytrade.Config{
		ClientSecret: "my-client-secret",
		Grant:        "my-refresh-token",
		Transport:    inProcess{},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	token, err := app.Refresh(context.Background(), nil) // nobody has to log in
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("access for", token.Expiry.Sub(token.Issued))
	fmt.Println("somebody must log in one day:", !token.LoginBy.IsZero())
	// Output:
	// access for 15m0s
	// somebody must log in one day: false
}
