// Package conformance checks that an implementation of a brokerauth contract keeps it, whoever wrote it.
//
// Each check is a subtest whose name is the rule that it enforces. Call them from a test of your own:
//
//	func TestStore(t *testing.T) {
//		conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
//			return mystore.New(at)
//		})
//	}
//
//	func TestProvider(t *testing.T) {
//		conformance.TestProvider(t, conformance.Harness{
//			New: func(transport http.RoundTripper) (brokerauth.Provider, error) {
//				return mybroker.New(mybroker.Config{ClientID: "app", ClientSecret: secret, Transport: transport})
//			},
//			Secrets: []string{secret},
//		})
//	}
//
// [TestFlow] needs to know, besides, how the flow's user comes back from the broker.
package conformance
