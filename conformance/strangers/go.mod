module github.com/brokerauth/brokerauth/conformance/strangers

go 1.26.0

require (
	github.com/brokerauth/brokerauth v0.1.0
	golang.org/x/oauth2 v0.37.0
)

require (
	github.com/gofrs/flock v0.13.2 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
