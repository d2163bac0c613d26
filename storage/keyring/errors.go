package keyring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/godbus/dbus/v5"
	gokeyring "github.com/zalando/go-keyring"

	"github.com/brokerauth/brokerauth"
)

// ErrLocked means that somebody must unlock the keyring before anybody can tell what is in it.
var ErrLocked = errors.New("the keyring is locked")

var (
	errMissing = errors.New("no such item")
	errLocked  = fmt.Errorf("%w: unlock it, as logging in to the desktop does, or delete it if it is an old one whose password is lost, "+
		"or choose another store: %w", ErrLocked, brokerauth.ErrUnavailable)
	errDismissed = fmt.Errorf("%w, and the dialog to unlock it was dismissed: try again and answer it: %w",
		ErrLocked, fs.ErrPermission)
	errAbsent = fmt.Errorf("no keyring can be reached, as is usual in cron, in services and over SSH: "+
		"run this in a desktop session with a keyring, or choose another store, such as files on disk: %w: %w",
		brokerauth.ErrUnavailable, errors.ErrUnsupported)
	errSilent = fmt.Errorf("the keyring does not answer: look for a dialog of its own, try again, or restart it: %w: %w",
		brokerauth.ErrUnavailable, os.ErrDeadlineExceeded)
	errDenied = fmt.Errorf("the keyring denies access: allow it in the keyring's settings, or choose another store: %w",
		fs.ErrPermission)
	errTooLarge = errors.New("the keyring refuses an item as too large: choose another store, such as files on disk")
	errAltered  = errors.New("the keyring does not keep what is stored in it: repair it, or choose another store, " +
		"such as files on disk")
	errLost = fmt.Errorf("the keyring went away before it answered: try again: %w", brokerauth.ErrUnavailable)
)

// explain says in our words what a keyring's error means. Its own words may repeat what it was given, and are dropped.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[dbus.Error](err); ok {
		return explainDBus(e.Name)
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return explainExit(e.ExitCode())
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return explainErrno(e)
	}
	switch {
	case errors.Is(err, gokeyring.ErrNotFound):
		return errMissing
	case errors.Is(err, gokeyring.ErrSetDataTooBig):
		return errTooLarge
	case errors.Is(err, gokeyring.ErrUnsupportedPlatform):
		return errAbsent
	case errors.Is(err, dbus.ErrClosed):
		return errLost
	}
	for _, ours := range []error{
		errMissing, errTooLarge, ErrLocked, fs.ErrPermission, brokerauth.ErrUnavailable, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, ours) {
			return err
		}
	}
	return fmt.Errorf("the keyring fails with an error of an unknown kind (%T): %w", err, brokerauth.ErrUnavailable)
}

// explainDBus knows the names of D-Bus and of the Secret Service API draft.
func explainDBus(name string) error {
	switch name {
	case "org.freedesktop.Secret.Error.IsLocked":
		return errLocked
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner":
		return errAbsent
	case "org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.AuthFailed",
		"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired":
		return errDenied
	case "org.freedesktop.DBus.Error.LimitsExceeded":
		return errTooLarge
	case "org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected":
		return errLost
	}
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") != "" {
		name = "an error without a name"
	}
	return fmt.Errorf("the keyring fails: %s: %w", name, brokerauth.ErrUnavailable)
}

// explainExit knows the status of macOS's security(1), which is the low byte of an OSStatus of SecBase.h.
func explainExit(status int) error {
	switch status {
	case 36: // errSecInteractionNotAllowed, -25308: locked, and no screen to ask on
		return errLocked
	case 128: // errSecUserCanceled, -128
		return errDismissed
	case 51, 195: // errSecAuthFailed, -25293; wrPermErr, -61
		return errDenied
	case 50, 53: // errSecNoSuchKeychain, -25294; errSecNotAvailable, -25291
		return errAbsent
	}
	return fmt.Errorf("the keychain fails with status %d: %w", status, brokerauth.ErrUnavailable)
}

// explainErrno knows Windows' errors of winerror.h, and what comes of starting security(1).
func explainErrno(e syscall.Errno) error {
	switch {
	case e == 1312: // ERROR_NO_SUCH_LOGON_SESSION: SSH and other network logons
		return errAbsent
	case e == 1783: // RPC_X_BAD_STUB_DATA
		return errTooLarge
	case e == 1223: // ERROR_CANCELLED
		return errDismissed
	case errors.Is(e, fs.ErrPermission):
		return errDenied
	case errors.Is(e, fs.ErrNotExist):
		return errAbsent
	}
	return fmt.Errorf("the keyring fails: %w: %w", e, brokerauth.ErrUnavailable)
}
