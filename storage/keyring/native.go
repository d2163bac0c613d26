//go:build !linux && !freebsd && !netbsd && !openbsd && !dragonfly

package keyring

import (
	"context"
	"errors"

	gokeyring "github.com/zalando/go-keyring"
)

// maxItem is what the Windows Credential Manager holds (CRED_MAX_CREDENTIAL_BLOB_SIZE), and less than what fits in a
// line of macOS's security(1), which is 4,096 bytes of base64 and names.
const maxItem = 2560

// native is the macOS Keychain or the Windows Credential Manager.
type native struct{ service string }

func openRing(_ context.Context, service string, _ bool) (ring, error) { return native{service}, nil }

func (native) ready(context.Context) error { return nil }

func (n native) get(name string) (string, error) { return gokeyring.Get(n.service, name) }

func (n native) set(name, value string) error { return gokeyring.Set(n.service, name, value) }

func (n native) delete(name string) error {
	if err := gokeyring.Delete(n.service, name); !errors.Is(err, gokeyring.ErrNotFound) {
		return err
	}
	return nil
}

func (native) close() {}
