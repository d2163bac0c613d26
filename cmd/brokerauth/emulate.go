package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/brokerauth/brokerauth/conformance/emulator"
)

func (a *app) emulateCommand() *cobra.Command {
	var (
		config                        emulator.Config
		listen, logFile               string
		withTLS                       bool
		accessTTL, loginTTL, slowness period
	)
	cmd := &cobra.Command{
		Use:   "emulate BROKER|all",
		Short: "Serve a pretend broker, for testing without an account",
		Long: "Serve a pretend broker until interrupted. The first line of the answer is its base URL:\n\n" +
			"    SCHWAB_BASE_URL=http://127.0.0.1:PORT brokerauth login schwab\n\n" +
			"With --tls the second line is the file of its certificate, made for this run and deleted after it: " +
			"curl takes it by --cacert, Go programs on Linux and OpenSSL by SSL_CERT_FILE. tastytrade's last line is the " +
			"personal grant that it knows.\n\n" +
			"all serves schwab, tdameritrade and tastytrade on ports that follow one another, and answers with all settings that " +
			"a shell needs to use them.",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := oneBroker(cmd, args); err != nil {
				return fmt.Errorf("%w, or all", err)
			}
			return nil
		},
		ValidArgs: append(brokerNames(), "all"),
	}
	flags := cmd.Flags()
	flags.StringVar(&listen, "listen", "127.0.0.1:0", "address and port; port 0 picks one")
	flags.BoolVar(&withTLS, "tls", false, "serve https, with a certificate of its own")
	flags.BoolVar(&config.AutoApprove, "auto-approve", false, "consent by itself: the login page redirects at once")
	flags.Var(&accessTTL, "access-ttl", "life of an access token (default the broker's)")
	flags.Var(&loginTTL, "login-ttl", "life of a login (default the broker's)")
	flags.Var(&slowness, "latency", "how long a token call takes")
	flags.BoolVar(&config.Rotate, "rotate", false, "issue a new refresh token at each refresh")
	flags.StringVar(&config.ClientID, "client-id", "", "the only app that is known (default any)")
	flags.StringVar(&config.ClientSecret, "client-secret", "", "the pretend app's secret (default any)")
	flags.StringVar(&config.Grant, "grant", "", "tastytrade's pretend personal grant (default one made up)")
	flags.StringVar(&logFile, "log", "", "file to add one JSON object a request to")
	cmd.RunE = a.action(func(ctx context.Context, args []string) (err error) {
		all := args[0] == "all"
		served := slices.DeleteFunc(brokers(), func(b broker) bool { return b.name == "tastytrade-sandbox" })
		if !all {
			b, err := findBroker(args[0])
			if err != nil {
				return err
			}
			served = []broker{b}
		}
		host, service, err := net.SplitHostPort(listen)
		port, portErr := strconv.ParseUint(service, 10, 16)
		if err != nil || portErr != nil {
			return usageError{fmt.Errorf("%q is no address to listen at: write it like 127.0.0.1:8080", listen)}
		}
		ip := net.ParseIP(host)
		if host != "localhost" && !ip.IsLoopback() && (config.ClientID == "" || config.ClientSecret == "" || config.AutoApprove) {
			return usageError{fmt.Errorf("%s can be reached from other computers: "+
				"give --client-id and --client-secret and leave --auto-approve out, or listen at 127.0.0.1", listen)}
		}
		config.AccessTTL, config.LoginTTL, config.Latency = time.Duration(accessTTL), time.Duration(loginTTL), time.Duration(slowness)
		if logFile != "" {
			f, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err != nil {
				return usageError{fmt.Errorf("--log: %w", err)}
			}
			defer f.Close()
			config.Log = f
		}
		var cert *tls.Certificate
		certFile := ""
		if withTLS {
			dir, err := os.MkdirTemp("", "brokerauth-emulate-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			if cert, err = newCertificate(host); err != nil {
				return err
			}
			certFile = filepath.Join(dir, "cert.pem")
			text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
			if err := os.WriteFile(certFile, text, 0o644); err != nil {
				return err
			}
		}
		free, err := freePorts(ctx, 2) // for callbacks
		if err != nil {
			return err
		}
		var lines []string
		set := func(name, value string) { lines = append(lines, "export "+name+"="+quoted(value)) }
		for i, b := range served {
			own, address := config, listen
			if all && b.kept == nil {
				own.Grant = ""
			}
			if b.kept != nil && own.Grant == "" {
				own.Grant = "emulated." + rand.Text()
				if !all {
					lines = append(lines, b.prefix+"_REFRESH_TOKEN="+own.Grant)
				}
			}
			if port != 0 {
				address = net.JoinHostPort(host, strconv.FormatUint(port+uint64(i), 10))
			}
			pretend, err := emulator.New(b.name, own)
			if err != nil {
				return usageError{err}
			}
			base, stop, err := serve(ctx, address, pretend, cert)
			if err != nil {
				return err
			}
			defer stop()
			if !all {
				lines = append([]string{base, certFile}, lines...)
				break
			}
			set(b.prefix+baseURL, base)
			app := map[string]string{
				"SCHWAB_APP_KEY":      cmp.Or(config.ClientID, "emulated-app-key"),
				"SCHWAB_APP_SECRET":   cmp.Or(config.ClientSecret, "emulated-app-secret"),
				"SCHWAB_CALLBACK_URL": "https://127.0.0.1:" + free[0],
				"TD_CLIENT_ID":        cmp.Or(config.ClientID, "emulated-consumer-key"),
				"TD_CALLBACK_URL":     "http://localhost:" + free[1],
				"TASTY_CLIENT_SECRET": cmp.Or(config.ClientSecret, "emulated-app-secret"),
				"TASTY_REFRESH_TOKEN": own.Grant,
				"TASTY_CLIENT_ID":     config.ClientID,
			}
			for _, s := range b.settings {
				if app[s.name] != "" {
					set(s.name, app[s.name])
				}
			}
		}
		if certFile != "" && all {
			set("SSL_CERT_FILE", certFile)
		}
		for _, line := range lines {
			if line != "" {
				a.say("%s", line)
			}
		}
		<-ctx.Done()
		return nil // an interrupt is how it is meant to end
	})
	return cmd
}

// serve serves h at an address, over TLS if cert is given, until stop is called.
func serve(ctx context.Context, address string, h http.Handler, cert *tls.Certificate) (base string, stop func(), err error) {
	l, err := listenAt(ctx, address)
	if err != nil {
		return "", nil, err
	}
	base = "http://" + l.Addr().String()
	if cert != nil {
		base = "https://" + l.Addr().String()
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"http/1.1"}})
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	return base, func() {
		server.Close()
		<-done
	}, nil
}

// listenAt listens at an address that a flag names.
func listenAt(ctx context.Context, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil && ctx.Err() == nil {
		return nil, usageError{fmt.Errorf("--listen %s: %w: give another address, such as 127.0.0.1:0, which picks a free port", address, cause(err))}
	}
	return l, err
}

// newCertificate makes a certificate for host and this computer's own names, which vouches for nothing else.
func newCertificate(host string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "brokerauth, for this run"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(30 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = append(template.IPAddresses, ip)
	} else if host != "" {
		template.DNSNames = append(template.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("the certificate that was made cannot be read")
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
