// Package conformance checks that an implementation of a brokerauth contract keeps it, whoever wrote it.
//
// Each check is a subtest whose name is the rule that it enforces. Call them from a test of your own:
//
//	func TestStore(t *testing.T) {
//		conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
//			return mystore.New(at)
//		})
//	}
package conformance
