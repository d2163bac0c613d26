package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

// mount is for root, and not for most containers: elsewhere the test is skipped, and in CI it fails.
func mount(t *testing.T, source, dir, kind string, flags uintptr, options string) {
	t.Helper()
	err := syscall.Mount(source, dir, kind, flags, options)
	switch {
	case err == nil:
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skipf("this user cannot mount here: %v", err)
	}
}

// A disk that is full or read-only is named with its remedy, whatever the command, and whoever was logged in by a code
// that is spent is told that it must be done again.
func TestFullDisk(t *testing.T) {
	p := newPlace(t, emulator.Config{})
	dir := filepath.Join(p.dir, "small")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, "tmpfs", dir, "tmpfs", 0, "mode=0700,size=64k")
	fill := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 100<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the disk is not full: %v", err)
		}
	}
	p = p.with("BROKERAUTH_STORE", "disk:"+dir)
	p.login()

	for _, test := range []struct {
		command string
		want    []string
	}{
		{"refresh", []string{"the new token could not be saved", "no space left on device: free space there"}},
		{"login", []string{"could not be saved", "no space left on device", "earlier logins of this app", "have ended",
			"free space there, then run: brokerauth login schwab"}},
	} {
		command, want := test.command, test.want
		os.Remove(filepath.Join(dir, "fill"))
		var said buffer
		cmd, answer := underWay(t, p, &said, command, "schwab")
		fill()
		answer()
		if code := exitOf(cmd.Wait()); code != 1 {
			t.Errorf("%s: exit code %d, want 1", command, code)
		}
		wantAll(t, said.String(), want...)
		if text := said.String(); strings.Contains(text, "works in this program") || strings.Count(text, "free space") != 1 {
			t.Errorf("%s, which ends, says: %s", command, text)
		}
	}
	wantAll(t, p.must(1, "refresh", "schwab").errors, "was not asked", "no space left on device: free space there\n")
	wantAll(t, p.must(1, "login", "schwab").errors, "nobody was asked to log in", "free space there, or name another with --store disk:DIR")

	os.Remove(filepath.Join(dir, "fill"))
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"refresh", "logout"} {
		wantAll(t, p.must(1, command, "schwab").errors, "read-only file system: make it writable for you alone\n")
	}
	var out bytes.Buffer
	cmd := p.command("login", "schwab", "--start")
	cmd.Stderr = &out
	if code := exitOf(cmd.Run()); code != 1 {
		t.Errorf("login --start: exit code %d, want 1", code)
	}
	wantAll(t, out.String(), "read-only file system: make it writable for you alone\n")
}

// SQLite needs room to look into its file.
func TestFullDiskSQLite(t *testing.T) {
	p := newPlace(t, emulator.Config{})
	dir := filepath.Join(p.dir, "small")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, "tmpfs", dir, "tmpfs", 0, "mode=0700,size=200k")
	p = p.with("BROKERAUTH_STORE", "sqlite:"+filepath.Join(dir, "logins.db"))
	p.login()
	if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 300<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	for _, command := range []string{"refresh", "login", "logout"} {
		wantAll(t, p.must(1, command, "schwab").errors, "look whether its disk is full or read-only")
	}
	os.Remove(filepath.Join(dir, "fill"))
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"refresh", "login", "logout"} {
		wantAll(t, p.must(1, command, "schwab").errors, "look whether its folder is there, can be written, and is this user's own")
	}
}
