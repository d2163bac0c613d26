// Package private finds and guards folders and files that nobody but their user may touch.
package private

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"syscall"
)

// Home returns the user's own folder for what brokerauth keeps on this host, and makes nothing.
//
// It holds state, not settings or a cache: tools empty caches, and copy settings to other hosts, where two copies of a
// login would spend each other's tokens. So it is under $XDG_STATE_HOME or ~/.local/state, on macOS under
// ~/Library/Application Support, and on Windows under %LocalAppData%, not in the part of the profile that roams.
func Home() (string, error) {
	name, dir := "HOME", ""
	switch runtime.GOOS {
	case "windows":
		name = "LocalAppData"
		dir = os.Getenv(name)
	case "darwin", "ios":
		dir = filepath.Join(os.Getenv(name), "Library", "Application Support")
	default:
		// The XDG base directory specification has a relative path ignored.
		if dir = os.Getenv("XDG_STATE_HOME"); !filepath.IsAbs(dir) {
			dir = filepath.Join(os.Getenv(name), ".local", "state")
			name = "HOME or XDG_STATE_HOME"
		}
	}
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("no folder for this user's logins is known: set %s to an absolute path, or name a folder", name)
	}
	return filepath.Join(dir, "brokerauth"), nil
}

// AccountHome is like Home, but asks the user's account and no variable of the environment, except where the system
// does not tell a program without C libraries. So it is one folder for all processes of the user, those that cron and
// services start included: for what only works if all of them agree.
func AccountHome() (string, error) {
	account, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("no home folder of this user is known: %w", err)
	}
	if !filepath.IsAbs(account.HomeDir) {
		return "", fmt.Errorf("the account of this user, %s, has no home folder: give it one", account.Username)
	}
	dir := filepath.Join(account.HomeDir, ".local", "state")
	switch runtime.GOOS {
	case "windows":
		dir = filepath.Join(account.HomeDir, "AppData", "Local")
	case "darwin", "ios":
		dir = filepath.Join(account.HomeDir, "Library", "Application Support")
	}
	return filepath.Join(dir, "brokerauth"), nil
}

// MakeDir makes the folder and those above it that are missing, for this user alone whatever the umask, and durably.
// What exists stays as it is, and what is made on a mount that refuses to change modes: Check says if it will do.
func MakeDir(dir string) error {
	parent := filepath.Dir(dir)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := MakeDir(parent); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	f, err := os.Open(parent)
	if err != nil {
		return nil // a folder that may be written and not read cannot be synced, either
	}
	return Sync(f)
}

// Sync makes the names in the open folder dir durable, and closes it.
func Sync(dir *os.File) error {
	defer dir.Close()
	if runtime.GOOS == "windows" {
		return nil // it has no such call, and its file systems keep a journal of names
	}
	// Some file systems cannot, and then there is no more to be had.
	if err := dir.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// Check reports, matching fs.ErrPermission, if info, which describes what is at path, is open to other users: another's
// folder or file, a folder that others can write, or anything else that others can read or write.
//
// The error has the command that mends it only where that takes nothing from others: not for what is another's, nor for
// a folder that is meant to be shared, such as /tmp.
//
// On Windows it reports nothing: there the user's profile keeps others out by its access lists, which no mode shows.
func Check(path string, info fs.FileInfo) error {
	owner, self, known := owners(info)
	if !known {
		return nil
	}
	mode, others, chmod, what := info.Mode(), fs.FileMode(0o077), "600", "file"
	elsewhere := "use one of your own, in a folder of mode 0700"
	if info.IsDir() {
		others, chmod, what = 0o022, "700", "folder"
		elsewhere = "use another folder, of your own and with mode 0700"
	}
	if owner != self {
		return fmt.Errorf("%s: this %s, mode %#o, belongs to uid %d and not to uid %d, which runs this program: %s: %w",
			path, what, mode.Perm(), owner, self, elsewhere, fs.ErrPermission)
	}
	if mode.Perm()&others != 0 {
		// Those directly below / are the system's, and an image may have made its /tmp without the sticky bit.
		if info.IsDir() && (mode&(fs.ModeSticky|fs.ModeSetgid) != 0 || filepath.Dir(path) == "/") {
			return fmt.Errorf("%s: this %s, mode %#o, of uid %d is shared with other users: %s: %w",
				path, what, mode.Perm(), owner, elsewhere, fs.ErrPermission)
		}
		return fmt.Errorf("%s: this %s, mode %#o, of uid %d is open to other users: run: chmod %s %q: %w",
			path, what, mode.Perm(), owner, chmod, path, fs.ErrPermission)
	}
	return nil
}
