package redis_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/conformance"
	"github.com/brokerauth/brokerauth/internal/engine"
	"github.com/brokerauth/brokerauth/storage/redis"
	"github.com/brokerauth/brokerauth/storage/sealed"
)

var key = brokerauth.Key{Provider: "schwab", Identity: "3fa8", Profile: "default"}

// serverAddr tells child processes which server their parent has started.
const serverAddr = "BROKERAUTH_TEST_SERVER"

func server(t *testing.T, start func() string) string {
	t.Helper()
	addr := os.Getenv(serverAddr)
	if addr == "" {
		addr = start()
		t.Setenv(serverAddr, addr)
	}
	return addr
}

func open(t testing.TB, client goredis.UniversalClient, prefix string) *redis.Store {
	t.Helper()
	t.Cleanup(func() { client.Close() })
	store, err := redis.New(client, prefix)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func dial(addr string) *goredis.Client {
	return goredis.NewClient(&goredis.Options{Addr: addr, ContextTimeoutEnabled: true})
}

func TestStore(t *testing.T) {
	addr := server(t, func() string { return engine.Redis(t).Addr })
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
		return open(t, dial(addr), filepath.Base(at)+":")
	})
}

func TestStoreSealed(t *testing.T) {
	addr := server(t, func() string { return engine.Redis(t).Addr })
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
		store, err := sealed.New(open(t, dial(addr), filepath.Base(at)+":"), sealed.Key(bytes.Repeat([]byte{1}, 32)))
		if err != nil {
			t.Fatal(err)
		}
		return store
	})
}

// TestStoreInCluster has three servers that share the keys.
func TestStoreInCluster(t *testing.T) {
	addrs := server(t, func() string { return strings.Join(cluster(t), ",") })
	conformance.TestStore(t, func(t *testing.T, at string) brokerauth.Store {
		return open(t, goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: strings.Split(addrs, ","), ContextTimeoutEnabled: true}),
			filepath.Base(at)+":")
	})
}

// cluster starts three servers that share the keys, and returns their addresses.
func cluster(t *testing.T) (addrs []string) {
	t.Helper()
	var clients []*goredis.Client
	for i := range 3 {
		bus := engine.FreePort(t) // else it is 10000 above the port, which there may be none
		s := engine.Redis(t, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "60000")
		c := goredis.NewClient(&goredis.Options{Addr: s.Addr})
		defer c.Close()
		if err := c.Do(t.Context(), "CLUSTER", "ADDSLOTSRANGE", i*16384/3, (i+1)*16384/3-1).Err(); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			if err := clients[0].Do(t.Context(), "CLUSTER", "MEET", "127.0.0.1", s.Port, bus).Err(); err != nil {
				t.Fatal(err)
			}
		}
		clients, addrs = append(clients, c), append(addrs, s.Addr)
	}
	for _, c := range clients {
		eventually(t, "the cluster is whole", func() error {
			info, err := c.ClusterInfo(t.Context()).Result()
			if err == nil && (!strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:3")) {
				err = errors.New(info)
			}
			return err
		})
	}
	return addrs
}

// TestClusterMovesASlot changes a record while the slot it is in goes to another server: before the record has, and after.
func TestClusterMovesASlot(t *testing.T) {
	addrs := cluster(t)
	client := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: addrs, ContextTimeoutEnabled: true})
	store := open(t, client, "")
	mustSwap(t, store, "", "one")
	name := "brokerauth:{" + key.String() + "}"
	do := func(c *goredis.Client, args ...any) string {
		t.Helper()
		answer, err := c.Do(t.Context(), args...).Text()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	slot, err := client.ClusterKeySlot(t.Context(), name).Result()
	if err != nil {
		t.Fatal(err)
	}
	from, err := client.MasterForKey(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	other := addrs[0]
	if from.Options().Addr == other {
		other = addrs[1]
	}
	to := dial(other)
	defer to.Close()
	do(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", do(from, "CLUSTER", "MYID"))
	do(from, "CLUSTER", "SETSLOT", slot, "MIGRATING", do(to, "CLUSTER", "MYID"))
	mustSwap(t, store, "one", "two")
	host, port, err := net.SplitHostPort(other)
	if err != nil {
		t.Fatal(err)
	}
	do(from, "MIGRATE", host, port, name, 0, 60000)
	mustSwap(t, store, "two", "three")
	if got, err := store.Load(t.Context(), key); err != nil || string(got) != "three" {
		t.Errorf("Load = %q, %v", got, err)
	}
}

// eventually tries f until it succeeds. A Sentinel that was stalled trusts nobody for half a minute.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func mustSwap(t *testing.T, store brokerauth.Store, old, new string) {
	t.Helper()
	bytesOf := func(s string) []byte {
		if s == "" {
			return nil
		}
		return []byte(s)
	}
	if swapped, err := store.CompareAndSwap(t.Context(), key, bytesOf(old), bytesOf(new)); err != nil || !swapped {
		t.Fatalf("CompareAndSwap from %q to %q = %v, %v, want true", old, new, swapped, err)
	}
}

// checkKind checks that err matches want, and nothing else that a program acts on, and shows no secret.
func checkKind(t *testing.T, what string, err, want error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want %v", what, want)
		return
	}
	for _, kind := range []error{brokerauth.ErrRejected, brokerauth.ErrCorrupt, brokerauth.ErrUnavailable, brokerauth.ErrLoginRequired,
		fs.ErrNotExist, fs.ErrPermission, fs.ErrClosed, errors.ErrUnsupported} {
		if errors.Is(err, kind) != (kind == want) {
			t.Errorf("%s: %v, want %v alone", what, err, want)
		}
	}
	if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, "emulated.") {
		t.Errorf("%s: the error shows a secret", what)
	}
}

func TestNew(t *testing.T) {
	for name, client := range map[string]goredis.UniversalClient{
		"none":     nil,
		"replicas": goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, ReadOnly: true}),
		"ring":     goredis.NewRing(&goredis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}}),
	} {
		if _, err := redis.New(client, ""); err == nil {
			t.Errorf("%s: no error", name)
		}
		if client != nil {
			client.Close()
		}
	}
	client := dial("127.0.0.1:1")
	defer client.Close()
	if _, err := redis.New(client, "a{b}:"); err == nil {
		t.Error("braces in the prefix: no error")
	}
}

func TestPrefixesAreApart(t *testing.T) {
	addr := engine.Redis(t).Addr
	stores := []*redis.Store{open(t, dial(addr), ""), open(t, dial(addr), "b*:"), open(t, dial(addr), "bx:"), open(t, dial(addr), `b\:`)}
	for i, store := range stores {
		mustSwap(t, store, "", fmt.Sprint("record ", i))
	}
	for i, store := range stores {
		if got, err := store.Load(t.Context(), key); err != nil || string(got) != fmt.Sprint("record ", i) {
			t.Errorf("Load = %q, %v", got, err)
		}
		if keys, err := store.Keys(t.Context()); err != nil || len(keys) != 1 || keys[0] != key {
			t.Errorf("Keys = %v, %v", keys, err)
		}
	}
}

func TestDeleteTakesWhatWasSetAside(t *testing.T) {
	client := dial(engine.Redis(t).Addr)
	store := open(t, client, "")
	for range 2 {
		mustSwap(t, store, "", "unreadable")
		if _, err := store.SetAside(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	mustSwap(t, store, "", "record")
	mustSwap(t, store, "record", "")
	if n, err := client.DBSize(t.Context()).Result(); err != nil || n != 0 {
		t.Errorf("%d keys are left, %v", n, err)
	}
	mustSwap(t, store, "", "unreadable")
	if _, err := store.SetAside(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	mustSwap(t, store, "", "")
	if n, err := client.DBSize(t.Context()).Result(); err != nil || n != 0 {
		t.Errorf("%d keys are left, %v", n, err)
	}
}

// What is far larger than a record is not fetched, and makes way for a login.
func TestHugeRecord(t *testing.T) {
	client := dial(engine.Redis(t).Addr)
	store := open(t, client, "")
	if err := client.SetRange(t.Context(), "brokerauth:{"+key.String()+"}", 16<<20, "x").Err(); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := store.Load(t.Context(), key)
	runtime.ReadMemStats(&after)
	checkKind(t, "Load", err, brokerauth.ErrCorrupt)
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 8 {
		t.Errorf("Load allocates %d MiB", n)
	}
	if _, err := store.SetAside(t.Context(), key); err != nil {
		t.Error(err)
	}
	mustSwap(t, store, "", "record")
}

// TestLeastUser has a user who may do no more than the documentation asks for, over TLS.
func TestLeastUser(t *testing.T) {
	const password = "emulated.redis-password"
	certificate, pool := certificate(t)
	port := engine.FreePort(t)
	s := engine.Redis(t, append(certificate, "--tls-port", port, "--tls-auth-clients", "no")...)
	admin := dial(s.Addr)
	defer admin.Close()
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "logins", "on", ">"+password, "~brokerauth:*", "-@all",
		"+eval", "+get", "+getrange", "+set", "+del", "+rpush", "+scan").Err(); err != nil {
		t.Fatal(err)
	}
	user := func(name, password string, roots *x509.CertPool) *redis.Store {
		return open(t, goredis.NewClient(&goredis.Options{Addr: "127.0.0.1:" + port, Username: name, Password: password,
			TLSConfig: &tls.Config{RootCAs: roots}, ContextTimeoutEnabled: true, DisableIdentity: true, MaxRetries: -1}), "")
	}
	store := user("logins", password, pool)
	mustSwap(t, store, "", "record")
	mustSwap(t, store, "record", "next")
	if _, err := store.SetAside(t.Context(), key); err != nil {
		t.Error(err)
	}
	mustSwap(t, store, "", "last")
	if keys, err := store.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("Keys = %v, %v", keys, err)
	}
	mustSwap(t, store, "last", "")

	for name, c := range map[string]struct {
		store *redis.Store
		want  error
	}{
		"wrong password":      {user("logins", password+"x", pool), fs.ErrPermission},
		"unknown certificate": {user("logins", password, nil), brokerauth.ErrUnavailable},
	} {
		_, err := c.store.Load(t.Context(), key)
		checkKind(t, name, err, c.want)
		_, err = c.store.CompareAndSwap(t.Context(), key, nil, []byte("emulated.record"))
		checkKind(t, name, err, c.want)
	}
	elsewhere := open(t, goredis.NewClient(&goredis.Options{Addr: s.Addr, Username: "logins", Password: password, DisableIdentity: true}), "other:")
	_, err := elsewhere.CompareAndSwap(t.Context(), key, nil, []byte("emulated.record"))
	checkKind(t, "another prefix", err, fs.ErrPermission)
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "default", "off").Err(); err != nil {
		t.Fatal(err)
	}
	_, err = open(t, dial(s.Addr), "").Load(t.Context(), key)
	checkKind(t, "no password", err, fs.ErrPermission)
}

// certificate makes one for the server, as its settings name it, and for clients.
func certificate(t *testing.T) (settings []string, pool *x509.CertPool) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	defer server.Close()
	der, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "brokerauth-certificate-") // t.TempDir is this user's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, block := range map[string]*pem.Block{
		"cert": {Type: "CERTIFICATE", Bytes: server.Certificate().Raw}, "key": {Type: "PRIVATE KEY", Bytes: der}} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, pem.EncodeToMemory(block), 0o644), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		settings = append(settings, "--tls-"+name+"-file", path)
	}
	settings = append(settings, "--tls-ca-cert-file", filepath.Join(dir, "cert"))
	pool = x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return settings, pool
}

func TestErrors(t *testing.T) {
	s := engine.Redis(t)
	admin := dial(s.Addr)
	defer admin.Close()
	do := func(args ...any) {
		t.Helper()
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	store := open(t, goredis.NewClient(&goredis.Options{Addr: s.Addr, ContextTimeoutEnabled: true, MaxRetries: -1}), "")
	mustSwap(t, store, "", "emulated.record")
	all := func(what string, want error, reads bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := store.Load(ctx, key); reads && err != nil {
			t.Errorf("%s: %v", what, err)
		} else if !reads {
			checkKind(t, what, err, want)
		}
		_, err := store.CompareAndSwap(ctx, key, []byte("emulated.record"), []byte("emulated.next"))
		checkKind(t, what, err, want)
	}
	do("CONFIG", "SET", "maxmemory", "1")
	all("no memory", brokerauth.ErrUnavailable, true)
	do("CONFIG", "SET", "maxmemory", "0")
	do("CONFIG", "SET", "min-replicas-to-write", "1")
	all("no replicas", brokerauth.ErrUnavailable, true)
	do("CONFIG", "SET", "min-replicas-to-write", "0")
	do("REPLICAOF", "127.0.0.1", engine.FreePort(t))
	all("replica", brokerauth.ErrUnavailable, true)
	do("REPLICAOF", "NO", "ONE")
	do("CONFIG", "SET", "maxclients", "1")
	crowded := open(t, goredis.NewClient(&goredis.Options{Addr: s.Addr, MaxRetries: -1}), "")
	_, err := crowded.Load(t.Context(), key)
	checkKind(t, "too many clients", err, brokerauth.ErrUnavailable)
	do("CONFIG", "SET", "maxclients", "100")

	do("DEL", "brokerauth:{"+key.String()+"}")
	do("SADD", "brokerauth:{"+key.String()+"}", "emulated.member")
	all("another type", brokerauth.ErrCorrupt, false)
	do("DEL", "brokerauth:{"+key.String()+"}")
	do("SET", "brokerauth:{"+key.String()+"}", "")
	_, err = store.Load(t.Context(), key)
	checkKind(t, "empty", err, brokerauth.ErrCorrupt)

	_, err = store.CompareAndSwap(t.Context(), key, nil, make([]byte, 1<<20+1))
	checkKind(t, "too large", err, nil)
	_, err = store.CompareAndSwap(t.Context(), key, nil, []byte{})
	checkKind(t, "empty new", err, nil)
	if swapped, err := store.CompareAndSwap(t.Context(), key, []byte{}, []byte("x")); swapped || err != nil {
		t.Errorf("empty old: %v, %v", swapped, err)
	}
	s.Kill()
	all("down", brokerauth.ErrUnavailable, false)
}

// TestLostAnswer: a client that repeated the swap would hear that it was not done.
func TestLostAnswer(t *testing.T) {
	addr := engine.Redis(t).Addr
	proxy := engine.NewProxy(t, addr)
	store := open(t, goredis.NewClient(&goredis.Options{Addr: proxy.Addr, MaxRetries: 3, ContextTimeoutEnabled: true}), "")
	mustSwap(t, store, "", "record")
	proxy.LoseAnswer(func(request []byte) bool { return bytes.Contains(request, []byte("emulated.next")) })
	swapped, err := store.CompareAndSwap(t.Context(), key, []byte("record"), []byte("emulated.next"))
	if swapped || err == nil || !strings.Contains(err.Error(), "unknown") || proxy.Lost() != 1 {
		t.Errorf("CompareAndSwap whose answer was lost = %v, %v; %d lost", swapped, err, proxy.Lost())
	}
	checkKind(t, "a lost answer", err, brokerauth.ErrUnavailable)
	if got, err := store.Load(t.Context(), key); err != nil || string(got) != "emulated.next" {
		t.Errorf("Load = %q, %v", got, err)
	}
}

// TestSentinel kills the primary: the replica takes its place, and the store finds it.
func TestSentinel(t *testing.T) {
	primary := engine.Redis(t)
	engine.Redis(t, "--replicaof", "127.0.0.1 "+primary.Port)
	watcher := dial(primary.Addr)
	defer watcher.Close()
	eventually(t, "the replica follows", func() error {
		info, err := watcher.Info(t.Context(), "replication").Result()
		if err == nil && !strings.Contains(info, "state=online") {
			err = errors.New(info)
		}
		return err
	})
	config := filepath.Join(primary.Dir, "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor logins 127.0.0.1 %s 1\nsentinel down-after-milliseconds logins 1000\n"+
		"sentinel failover-timeout logins 5000\n", primary.Port)
	if err := errors.Join(os.WriteFile(config, []byte(text), 0o666), os.Chmod(config, 0o666)); err != nil {
		t.Fatal(err)
	}
	sentinel := engine.Sentinel(t, config)
	store := open(t, goredis.NewFailoverClient(&goredis.FailoverOptions{MasterName: "logins", SentinelAddrs: []string{sentinel.Addr},
		ContextTimeoutEnabled: true}), "")
	mustSwap(t, store, "", "record")
	// A replica may be called online before it has loaded anything, and WAIT waits for its own connection's writes only: what
	// the replica has of this one it has of the record, too.
	marker := watcher.Conn()
	defer marker.Close()
	if err := marker.Set(t.Context(), "marker", "", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := marker.Wait(t.Context(), 1, time.Minute).Result(); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	eventually(t, "the sentinel knows the replica", func() error {
		c := goredis.NewSentinelClient(&goredis.Options{Addr: sentinel.Addr})
		defer c.Close()
		replicas, err := c.Replicas(t.Context(), "logins").Result()
		if err == nil && len(replicas) != 1 {
			err = fmt.Errorf("%d replicas", len(replicas))
		}
		return err
	})
	primary.Kill()
	eventually(t, "the replica has taken over", func() error {
		swapped, err := store.CompareAndSwap(t.Context(), key, []byte("record"), []byte("next"))
		if err == nil && !swapped {
			// One before it may have been done without an answer.
			if record, loadErr := store.Load(t.Context(), key); loadErr != nil || string(record) != "next" {
				err = fmt.Errorf("not swapped: %q, %v", record, loadErr)
			}
		} else if err != nil {
			checkKind(t, "during the failover", err, brokerauth.ErrUnavailable)
		}
		return err
	})
}
