module github.com/brokerauth/brokerauth

go 1.26.0

require (
	github.com/gofrs/flock v0.13.2
	github.com/google/go-cmp v0.7.0
	golang.org/x/oauth2 v0.37.0
	golang.org/x/sys v0.49.0
)
