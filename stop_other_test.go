//go:build !unix

package brokerauth_test

import "testing"

const canStop = false

func stopProcess(*testing.T, *process) {}

func continueProcess(*testing.T, *process) {}
