package brokerauth_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance/emulator"
	"github.com/brokerauth/brokerauth/storage/disk"
)

func TestUnreadableRecordIsNeverOverwritten(t *testing.T) {
	for name, damage := range map[string]func(whole []byte) []byte{
		"cut":     func(whole []byte) []byte { return whole[:len(whole)/2] },
		"empty":   func([]byte) []byte { return nil },
		"garbage": func([]byte) []byte { return []byte("\x00\xff{{") },
		"newer":   func(whole []byte) []byte { return bytes.Replace(whole, []byte(`"v":1`), []byte(`"v":2`), 1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store, err := disk.New(dir)
			must(t, err)
			b := emulator.Schwab(t)
			s, _ := loggedIn(t, b, store)
			must(t, s.Close())
			files, err := filepath.Glob(filepath.Join(dir, "schwab*.json"))
			if err != nil || len(files) != 1 {
				t.Fatal(files, err)
			}
			file := files[0]
			whole, err := os.ReadFile(file)
			must(t, err)
			damaged := damage(whole)
			must(t, os.WriteFile(file, damaged, 0o600))

			s, e := session(b, store)
			defer s.Close()
			want := brokerauth.ErrCorrupt
			if name == "newer" {
				want = errors.ErrUnsupported
			}
			_, tokenErr := s.Token(t.Context())
			_, refreshErr := s.Refresh(t.Context(), nil)
			_, statusErr := s.Status(t.Context())
			for _, err := range []error{tokenErr, refreshErr, statusErr} {
				if !errors.Is(err, want) || errors.Is(err, brokerauth.ErrLoginRequired) || !strings.Contains(err.Error(), file) {
					t.Errorf("%v: want %v, and the file's name", err, want)
				}
			}
			if now, _ := os.ReadFile(file); !bytes.Equal(now, damaged) {
				t.Fatal("the record was overwritten")
			}
			err = s.Login(t.Context(), b.Approve)
			if name == "newer" {
				if now, _ := os.ReadFile(file); !errors.Is(err, want) || !bytes.Equal(now, damaged) {
					t.Errorf("a login over a newer version's record: %v", err)
				}
				return
			}
			must(t, err)
			mustToken(t, s)
			if !e.has("set aside") {
				t.Errorf("events %v", e.kinds())
			}
			kept := false
			entries, err := os.ReadDir(dir)
			must(t, err)
			for _, entry := range entries {
				got, _ := os.ReadFile(filepath.Join(dir, entry.Name()))
				kept = kept || entry.Name() != filepath.Base(file) && bytes.Equal(got, damaged) && strings.Contains(entry.Name(), "schwab")
			}
			if !kept {
				t.Errorf("what stood there before the login is gone: %v", entries)
			}
			must(t, s.Logout(t.Context()))
			left, err := filepath.Glob(filepath.Join(dir, "*schwab*"))
			if err != nil || len(left) > 0 {
				t.Errorf("after a logout the folder holds %v, %v", left, err)
			}
		})
	}
}

// Two who log out of what cannot be read are both out: one of them moves it aside.
func TestTwoLogOutOfAnUnreadableRecord(t *testing.T) {
	dir := t.TempDir()
	store, err := disk.New(dir)
	must(t, err)
	b := emulator.Schwab(t)
	a, _ := loggedIn(t, b, store)
	defer a.Close()
	c, _ := session(b, store)
	defer c.Close()
	files, err := filepath.Glob(filepath.Join(dir, "schwab*.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	for range 50 {
		must(t, os.WriteFile(files[0], nil, 0o600))
		done := make(chan error)
		go func() { done <- c.Logout(t.Context()) }()
		err := a.Logout(t.Context())
		if err := errors.Join(err, <-done); err != nil {
			t.Fatal(err)
		}
	}
}
