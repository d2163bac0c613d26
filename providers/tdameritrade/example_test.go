package tdameritrade_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/providers/tdameritrade"
)

// TD Ameritrade itself is no more: with a BaseURL, such as an emulated broker's, the same calls work.
func Example() {
	app, err := tdameritrade.New(tdameritrade.Config{ClientID: "MYCONSUMERKEY", CallbackURL: "http://localhost:8080"})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = app.Begin(context.Background())
	fmt.Println(errors.Is(err, brokerauth.ErrRejected))
	var refused *brokerauth.Error
	if errors.As(err, &refused) {
		fmt.Println(refused.Description)
	}
	// Output:
	// true
	// TD Ameritrade's API ended in May 2024, and its logins with it
}
