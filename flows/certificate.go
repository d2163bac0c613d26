package flows

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/brokerauth/brokerauth/internal/lock"
	"github.com/brokerauth/brokerauth/internal/private"
)

const (
	// certificateLife is within the 397 days that browsers allow, and renewal long enough before its end that no
	// login falls on it.
	certificateLife    = 396 * 24 * time.Hour
	certificateRenewal = 30 * 24 * time.Hour
)

// ownCertificate returns this computer's certificate for its loopback addresses and its SHA-256 fingerprint.
// Where none can be kept it makes one for this time and says why.
func ownCertificate(ctx context.Context) (cert *tls.Certificate, fingerprint, why string, err error) {
	bundle, kept := keptCertificate(ctx)
	if kept != nil {
		why = kept.Error()
		if bundle, err = newCertificate(); err != nil {
			return nil, "", "", fmt.Errorf("flows: make a certificate for this computer: %w", err)
		}
	}
	pair, err := tls.X509KeyPair(bundle, bundle)
	if err != nil {
		return nil, "", "", fmt.Errorf("flows: read this computer's certificate: %w", err)
	}
	sum := sha256.Sum256(pair.Certificate[0])
	return &pair, strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":"), why, nil
}

// keptCertificate returns the certificate and key in loopback.pem, which it makes or renews.
func keptCertificate(ctx context.Context) ([]byte, error) {
	config, err := os.UserConfigDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(config, "brokerauth")
	path := filepath.Join(dir, "loopback.pem")
	if err := private.MakeDir(dir); err != nil {
		return nil, err
	}
	info, err := os.Stat(dir)
	if err == nil {
		err = private.Check(dir, info)
	}
	if err != nil {
		return nil, err
	}

	// Two programs that make one at a time would have the browser warn twice.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	turn := lock.New(filepath.Join(dir, "loopback.lock"))
	if err := turn.Lock(ctx); err != nil {
		return nil, err
	}
	defer turn.Unlock()
	if bundle, ok := readCertificate(path); ok {
		return bundle, nil
	}
	bundle, err := newCertificate()
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "loopback-*.tmp") // 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // it has gone if all went well
	_, err = f.Write(bundle)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, err
	}
	return bundle, nil
}

// readCertificate reports false for a certificate that needs replacing: missing, damaged, old, or with a key that
// others could have read.
func readCertificate(path string) ([]byte, bool) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || private.Check(path, info) != nil {
		return nil, false
	}
	bundle, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	pair, err := tls.X509KeyPair(bundle, bundle)
	if err != nil {
		return nil, false
	}
	now := time.Now()
	if pair.Leaf.NotBefore.After(now) || pair.Leaf.NotAfter.Before(now.Add(certificateRenewal)) {
		return nil, false
	}
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		if pair.Leaf.VerifyHostname(host) != nil {
			return nil, false
		}
	}
	return bundle, true
}

// newCertificate makes a certificate and its key, in PEM.
func newCertificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	begin := time.Now().Add(-time.Hour) // the browser may run under another clock
	leaf := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "brokerauth on this computer"},
		NotBefore:             begin,
		NotAfter:              begin.Add(certificateLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, // and IsCA false: whoever trusts it trusts nothing else
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...), nil
}
