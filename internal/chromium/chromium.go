//go:build linux

// Package chromium lets a test look at a page as people do: in Chromium, without a screen.
//
// It drives the browser that is installed, on Linux alone: where there is none, tests skip, but fail if CI is "true".
// Debian has it in the packages chromium and, for [Authority], libnss3-tools.
//
//	tab := chromium.Start(t)
//	chromium.Do(t, tab, chromedp.Navigate(address), chromedp.Click(chromedp.CSS("button")))
//	chromium.Await(t, tab, "You are logged in")
package chromium

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// patience is how long a browser may take for one step. It is generous: the machine may be busy with other tests.
const patience = time.Minute

// Start starts a browser that nobody has used before, which trusts the authorities, and returns its first tab: a context
// of package chromedp. More tabs come from chromedp.NewContext. The browser ends with the test.
func Start(t testing.TB, trusted ...*Authority) (tab context.Context) {
	t.Helper()
	path := program(t, "chromium")
	home, err := os.MkdirTemp("", "chromium-home-")
	if err != nil {
		t.Fatal(err)
	}
	// Unlike t.TempDir, whose removal may lose a race with the browser's last writes, and fail the test.
	t.Cleanup(func() { os.RemoveAll(home) })
	for _, a := range trusted {
		a.install(t, home)
	}
	// Its user data folder is chromedp's own, empty, and swept of whatever still uses it.
	ctx, free := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path),
		chromedp.Headless, chromedp.NoSandbox, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-gpu", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WindowSize(1000, 700),
		// Not the test's, which may hold secrets; and no bus, which the browser would otherwise start and leave.
		chromedp.NoInheritEnv,
		chromedp.Env("HOME="+home, "TMPDIR="+home, "PATH="+os.Getenv("PATH"), "LANG=en_US.UTF-8",
			"DBUS_SESSION_BUS_ADDRESS=disabled:", "DBUS_SYSTEM_BUS_ADDRESS=disabled:"),
	)
	t.Cleanup(free)
	tab, end := chromedp.NewContext(ctx)
	t.Cleanup(end)
	// The browser lives as long as the context of the first call, so that has no bound: but a timer.
	stuck := time.AfterFunc(patience, end)
	defer stuck.Stop()
	if err := chromedp.Do(tab); err != nil {
		t.Fatalf("chromium does not start: %v", err)
	}
	return tab
}

// program is where the named program is. The test skips without it, or in CI fails.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test needs %s: %v", name, err)
	}
	t.Skipf("this test needs %s: %v", name, err)
	return ""
}

// Do runs steps in tab, and ends the test if they fail.
func Do(t testing.TB, tab context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	run(t, tab, chromedp.Steps(steps...))
}

func run[T any](t testing.TB, tab context.Context, action chromedp.Action[T]) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		t.Fatalf("chromium: %v", err)
	}
	return v
}

// Text is what the page in tab says.
func Text(t testing.TB, tab context.Context) string {
	t.Helper()
	return run(t, tab, chromedp.Evaluate[string]("document.body ? document.body.innerText : ''"))
}

// Address is where tab is.
func Address(t testing.TB, tab context.Context) string {
	t.Helper()
	return run(t, tab, chromedp.Evaluate[string]("location.href"))
}

// Await waits until the page in tab says want, and ends the test if it never does.
func Await(t testing.TB, tab context.Context, want string) {
	t.Helper()
	var text string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(tab, patience)
		// Between two pages there is none that could answer.
		now, err := chromedp.Run(ctx, chromedp.Evaluate[string]("document.body ? document.body.innerText : ''"))
		cancel()
		if err == nil {
			if text = now; strings.Contains(text, want) {
				return
			}
		}
	}
	t.Fatalf("the page never says %q, but:\n%s", want, text)
}

// Visit goes to address, whose certificate the browser knows or the address needs none, and waits for the page.
func Visit(t testing.TB, tab context.Context, address string) {
	t.Helper()
	Do(t, tab, chromedp.Navigate(address))
}

// VisitWarned goes to address, whose certificate the browser does not know: it must warn of it, and the warning is
// clicked away. It ends the test if there is no warning.
func VisitWarned(t testing.TB, tab context.Context, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(tab, patience)
	defer cancel()
	err := chromedp.Do(ctx, chromedp.Navigate(address))
	if err == nil || !strings.Contains(err.Error(), "ERR_CERT_AUTHORITY_INVALID") {
		t.Fatalf("chromium: %v, want its warning of a certificate that nobody vouches for", err)
	}
	Do(t, tab, chromedp.Click(chromedp.CSS("#details-button")), chromedp.Click(chromedp.CSS("#proceed-link")))
}

// Dark has pages in tab shown as to people who prefer them dark, or light again.
func Dark(t testing.TB, tab context.Context, dark bool) {
	t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	Do(t, tab, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	}))
}

// Phone gives tab a phone's screen, or again a computer's.
func Phone(t testing.TB, tab context.Context, phone bool) {
	t.Helper()
	if phone {
		Do(t, tab, chromedp.EmulateViewport(360, 740, chromedp.EmulateScale(2), chromedp.EmulateMobile))
	} else {
		Do(t, tab, chromedp.EmulateViewport(1000, 700))
	}
}

// Shoot keeps a picture of the page in tab in the folder that the environment names as BROKERAUTH_SHOTS, for a person to
// look at; without that it does nothing.
func Shoot(t testing.TB, tab context.Context, name string) {
	t.Helper()
	dir := os.Getenv("BROKERAUTH_SHOTS")
	if dir == "" {
		return
	}
	picture := run(t, tab, chromedp.CaptureScreenshot())
	if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o600); err != nil {
		t.Fatal(err)
	}
}

// ShootAll keeps pictures of the page in tab: light, dark, and on a phone.
func ShootAll(t testing.TB, tab context.Context, name string) {
	t.Helper()
	if os.Getenv("BROKERAUTH_SHOTS") == "" {
		return
	}
	Shoot(t, tab, name+"-light")
	Dark(t, tab, true)
	Shoot(t, tab, name+"-dark")
	Phone(t, tab, true)
	Shoot(t, tab, name+"-phone-dark")
	Dark(t, tab, false)
	Shoot(t, tab, name+"-phone-light")
	Phone(t, tab, false)
}

// Command builds the command brokerauth and returns where it is.
func Command(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "brokerauth")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/brokerauth/brokerauth/cmd/brokerauth").CombinedOutput(); err != nil {
		t.Fatalf("the command does not build: %v\n%s", err, out)
	}
	return path
}

// Authority is a certificate authority of the test's own, as a person may have for the computers at home.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes one.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := &Authority{cert: template}
	pair := a.sign(t, template)
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// Root is the authority's own certificate.
func (a *Authority) Root() *x509.Certificate { return a.cert }

// Certificate is a new one for this computer's loopback addresses, which the authority vouches for.
func (a *Authority) Certificate(t testing.TB) *tls.Certificate {
	t.Helper()
	return a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "a test's computer"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	})
}

func (a *Authority) sign(t testing.TB, template *x509.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// install has the browser of the user whose folder home is trust the authority.
func (a *Authority) install(t testing.TB, home string) {
	t.Helper()
	certutil := program(t, "certutil")
	file := filepath.Join(t.TempDir(), "authority.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"-N", "--empty-password", "-d", "sql:" + db},
		{"-A", "-d", "sql:" + db, "-n", "authority", "-t", "C,,", "-i", file},
	} {
		if out, err := exec.Command(certutil, args...).CombinedOutput(); err != nil {
			t.Fatalf("certutil %s: %v\n%s", args[0], err, out)
		}
	}
}
