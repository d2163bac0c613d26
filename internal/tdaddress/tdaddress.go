// Package tdaddress knows where requests to TD Ameritrade's addresses go at Schwab.
package tdaddress

import (
	"net/url"
	"strings"
)

// addresses is TD Ameritrade's API beside Schwab's. {} stands for one part of the path, which the counterpart repeats in
// order; {account} for an account, which Schwab names by its hash. Empty: Schwab has nothing like it.
var addresses = []struct{ td, schwab string }{
	{"/v1/oauth2/token", "/v1/oauth/token"},
	{"/v1/accounts/watchlists", ""},
	{"/v1/accounts", "/trader/v1/accounts"},
	{"/v1/accounts/{account}", "/trader/v1/accounts/{account}"},
	{"/v1/accounts/{account}/orders", "/trader/v1/accounts/{account}/orders"},
	{"/v1/accounts/{account}/orders/{}", "/trader/v1/accounts/{account}/orders/{}"},
	{"/v1/accounts/{account}/transactions", "/trader/v1/accounts/{account}/transactions"},
	{"/v1/accounts/{account}/transactions/{}", "/trader/v1/accounts/{account}/transactions/{}"},
	{"/v1/accounts/{account}/preferences", "/trader/v1/userPreference"},
	{"/v1/orders", "/trader/v1/orders"},
	{"/v1/userprincipals", "/trader/v1/userPreference"},
	{"/v1/userprincipals/preferences", "/trader/v1/userPreference"},
	{"/v1/userprincipals/streamersubscriptionkeys", "/trader/v1/userPreference"},
	{"/v1/instruments", "/marketdata/v1/instruments"},
	{"/v1/instruments/{}", "/marketdata/v1/instruments/{}"},
	{"/v1/marketdata/quotes", "/marketdata/v1/quotes"},
	{"/v1/marketdata/chains", "/marketdata/v1/chains"},
	{"/v1/marketdata/hours", "/marketdata/v1/markets"},
	{"/v1/marketdata/{}/hours", "/marketdata/v1/markets/{}"},
	{"/v1/marketdata/{}/movers", "/marketdata/v1/movers/{}"},
	{"/v1/marketdata/{}/quotes", "/marketdata/v1/{}/quotes"},
	{"/v1/marketdata/{}/pricehistory", "/marketdata/v1/pricehistory?symbol={}"},
}

// Schwab returns where a request to one of TD Ameritrade's addresses goes at Schwab, for people to read: an
// account number in it is replaced by {accountHash}, and the query is left out. ok is false if td is no address of TD
// Ameritrade's; schwab is empty if Schwab has no counterpart, as for saved orders and watchlists.
func Schwab(td string) (schwab string, ok bool) {
	u, err := url.Parse(td)
	if err != nil {
		return "", false
	}
	const base = "https://api.schwabapi.com"
	path := strings.TrimRight(u.EscapedPath(), "/")
	switch strings.ToLower(u.Hostname()) {
	case "auth.tdameritrade.com":
		return base + "/v1/oauth/authorize", true
	case "apis.tdameritrade.com": // the older API, in XML
		return "", true
	case "api.tdameritrade.com":
		if path == "" || path == "/v1" {
			return base, true
		}
		for _, a := range addresses {
			if schwab, ok := counterpart(strings.Split(a.td, "/"), strings.Split(path, "/"), a.schwab); ok {
				if schwab == "" {
					return "", true
				}
				return base + schwab, true
			}
		}
		return "", true
	}
	return "", false
}

func counterpart(pattern, path []string, schwab string) (string, bool) {
	if len(pattern) != len(path) {
		return "", false
	}
	for i, part := range pattern {
		switch {
		case part == "{account}":
			schwab = strings.Replace(schwab, part, "{accountHash}", 1)
		case part == "{}":
			schwab = strings.Replace(schwab, part, strings.ReplaceAll(path[i], "&", "%26"), 1)
		case !strings.EqualFold(part, path[i]):
			return "", false
		}
	}
	return schwab, true
}
