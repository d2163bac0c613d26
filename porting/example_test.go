package porting_test

import (
	"fmt"
	"time"

	"github.com/brokerauth/brokerauth/porting"
)

func Example() {
	// What schwab-py keeps; a program reads it from the file.
	data := fmt.Appendf(nil, `{"creation_timestamp": %d, "token": {"access_token": "A1", "refresh_token": "R1",
		"token_type": "Bearer", "scope": "api", "expires_in": 1800}}`, time.Now().Add(-48*time.Hour).Unix())
	found, err := porting.Read(data, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	// session.Save(ctx, found.Token) would store it.
	fmt.Println(found.Format, "at", found.Provider)
	fmt.Println("a person logs in again in", time.Until(found.Token.LoginBy).Round(time.Hour))
	// Output:
	// schwab-py or schwab-go at schwab
	// a person logs in again in 120h0m0s
}

func ExampleMigrate() {
	env := map[string]string{"TD_CONSUMER_KEY": "KEY@AMER.OAUTHAP", "TD_CALLBACK_URL": "http://localhost:8080"}
	for _, f := range porting.Migrate(env, nil) {
		if f.Value != "" {
			fmt.Println(f.Setting + "=" + f.Value)
		}
	}
	// Output: SCHWAB_CALLBACK_URL=https://127.0.0.1:8080
}

func ExampleSchwabAddress() {
	fmt.Println(porting.SchwabAddress("https://api.tdameritrade.com/v1/accounts/123456789/orders"))
	// Output: https://api.schwabapi.com/trader/v1/accounts/{accountHash}/orders true
}
