//go:build !unix

package main

import "os/exec"

// asGroup leaves cmd as it is: what it starts may outlive it.
func asGroup(*exec.Cmd) {}
