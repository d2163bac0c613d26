// Package hunt finds secrets where none may be. It serves tests alone.
package hunt

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// shortest is how long a secret must be: shorter ones turn up by chance.
const shortest = 8

// form is one way to write a secret down.
type form struct{ name, text string }

// forms are the ways in which a secret may stand in a text. A client's secret in HTTP Basic is base64 after the id, so
// at any of three alignments.
func forms(secret string) []form {
	all := []form{
		{"plain", secret},
		{"URL-encoded", url.QueryEscape(secret)},
		{"URL-encoded", url.PathEscape(secret)},
		{"hex", hex.EncodeToString([]byte(secret))},
		{"bytes", strings.Trim(fmt.Sprint([]byte(secret)), "[]")},
		{"bytes", strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", []byte(secret)), "[]byte{"), "}")},
	}
	for before := range 3 {
		raw := append(make([]byte, before), secret...)
		first, end := (before*8+5)/6, len(raw)*8/6 // characters that depend on the secret alone
		all = append(all,
			form{"base64", base64.RawStdEncoding.EncodeToString(raw)[first:end]},
			form{"base64", base64.RawURLEncoding.EncodeToString(raw)[first:end]})
	}
	return all
}

// Find returns what text holds of secrets, in words that give none of them away.
func Find(text string, secrets ...string) (found []string) {
	lower := strings.ToLower(text)
	for i, secret := range secrets {
		if len(secret) < shortest {
			continue
		}
		for _, f := range forms(secret) {
			// Hex and the digits of an encoded URL are written in either case.
			if strings.Contains(text, f.text) || f.name != "base64" && strings.Contains(lower, strings.ToLower(f.text)) {
				found = append(found, fmt.Sprintf("secret %d, %s", i, f.name))
				break
			}
		}
	}
	return found
}

// Tree returns the files below dir whose names hold a secret, and those that hold one and can be read by others than
// their owner; skip says which of the latter are a test's own.
func Tree(dir string, skip func(path string) bool, secrets ...string) (found []string) {
	filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went away, or is nobody's to read
		}
		for _, what := range Find(filepath.Base(path), secrets...) {
			found = append(found, "a file's name: "+what)
		}
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o077 == 0 || skip(path) {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for _, what := range Find(string(text), secrets...) {
			found = append(found, fmt.Sprintf("%s, which others can read (%v): %s", path, info.Mode(), what))
		}
		return nil
	})
	return found
}
