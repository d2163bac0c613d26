package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	sqlite "github.com/ncruces/go-sqlite3/driver"
	goredis "github.com/redis/go-redis/v9"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/internal/private"
	"github.com/brokerauth/brokerauth/storage/redis"
	"github.com/brokerauth/brokerauth/storage/sqlstore"
)

// openDatabase opens the store at a database's address, or in a SQLite file. Nobody is asked before the first use.
func (a *app) openDatabase(s *settings, name string) (store keptStore, err error) {
	store.name = shown(name)
	scheme, path, _ := strings.Cut(name, ":")
	switch scheme {
	case "sqlite":
		if path == "" || strings.HasPrefix(path, "~") {
			return store, usageError{fmt.Errorf("the store %s names no file: write sqlite:FILE with its whole path", store.name)}
		}
		// Taken as a part of the file's name, it would stand wherever that is shown, and on the disk.
		if strings.Contains(path, "?") {
			return store, usageError{fmt.Errorf("the store %s has parameters behind its file, and takes none: write sqlite:FILE, without ?", store.name)}
		}
		if path, err = filepath.Abs(path); err != nil {
			return store, usageError{err}
		}
		store.lasting, store.how = "sqlite:"+path, "not encrypted, readable by this user alone"
		store.Store, err = a.openSQLite(path)
		return store, err
	case "postgres", "postgresql":
		store.how = "not encrypted, for all hosts that may use the database"
	default:
		store.how = "not encrypted, for all hosts that may use the server"
	}
	// A driver may quote the address, and what stands in it for a password.
	senseless := usageError{fmt.Errorf("the address of the store %s makes no sense to its driver: write postgres://USER@HOST/DATABASE?sslmode=verify-full or "+
		"redis://USER@HOST/0, and the password as PASSWORD in USER:PASSWORD@HOST, with %%-escapes for what is special in an address", store.name)}
	if strings.HasSuffix(store.name, hidden) {
		return store, senseless
	}
	address, err := s.address(name)
	if err != nil {
		return store, err
	}
	store.lasting = store.name
	if scheme == "postgres" || scheme == "postgresql" {
		store.Store, err = a.openPostgreSQL(address)
	} else {
		store.Store, err = a.openRedis(address)
	}
	switch {
	case errors.Is(err, errPlain):
		err = usageError{fmt.Errorf("the store %s would get its password and logins in plain text if anybody on the way says that it "+
			"knows no TLS: add sslmode=verify-full behind ? to the address, or sslmode=disable where the network is your own", store.name)}
	case err != nil:
		err = senseless
	}
	return store, err
}

// address returns the whole of a database's address. A password is taken from BROKERAUTH_STORE alone, or what
// BROKERAUTH_STORE_FILE names: other users of the machine can read a command line.
func (s *settings) address(name string) (string, error) {
	set, err := s.get("BROKERAUTH_STORE")
	if err != nil {
		return "", usageError{err}
	}
	if set = strings.TrimPrefix(set, "sealed+"); shown(set) == shown(name) {
		return set, nil
	}
	u, err := url.Parse(name)
	if err != nil {
		return "", usageError{fmt.Errorf("the address of the store %s cannot be read", shown(name))}
	}
	safe, err := url.Parse(shown(name))
	if _, ok := u.User.Password(); ok || err != nil || len(u.Query()) != len(safe.Query()) {
		return "", usageError{fmt.Errorf("the address of the store %s has a password in it, and other users of this machine can read a "+
			"command line: set BROKERAUTH_STORE to the address, or BROKERAUTH_STORE_FILE to a file with it, and name it here without the "+
			"password, if at all", shown(name))}
	}
	return name, nil
}

// isDatabaseName reports whether a store's name is that of a database.
func isDatabaseName(name string) bool {
	for _, scheme := range []string{"sqlite:", "postgres://", "postgresql://", "redis://", "rediss://"} {
		if strings.HasPrefix(name, scheme) {
			return true
		}
	}
	return false
}

// errPlain means that a connection may be without TLS though nobody has asked for that.
var errPlain = errors.New("no sslmode")

// plain reports whether a host that others may stand in for would be talked to without TLS by the driver's default, which
// is sslmode=prefer: whatever is stated is the user's choice. Where a service file states it, the driver's outcome tells: the
// default has TLS for some host, and sslmode=disable for none.
func plain(config *pgx.ConnConfig, address string) bool {
	mode := os.Getenv("PGSSLMODE")
	if u, err := url.Parse(address); err == nil {
		if stated := u.Query()["sslmode"]; len(stated) > 0 {
			mode = stated[len(stated)-1] // though it be empty: that is the default again
		}
	}
	hosts := append([]*pgconn.FallbackConfig{{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}}, config.Fallbacks...)
	encrypts := func(h *pgconn.FallbackConfig) bool { return h.TLSConfig != nil }
	return mode == "" && slices.ContainsFunc(hosts, encrypts) && slices.ContainsFunc(hosts, func(h *pgconn.FallbackConfig) bool {
		network, _ := pgconn.NetworkAddress(h.Host, h.Port)
		return h.TLSConfig == nil && network != "unix" && !strings.EqualFold(h.Host, "localhost") && !net.ParseIP(h.Host).IsLoopback()
	})
}

func (a *app) openPostgreSQL(address string) (brokerauth.Store, error) {
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, err
	}
	if plain(config, address) {
		return nil, errPlain
	}
	// One command makes a few statements, and a pooler may stand between.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(10) // a server takes a hundred or so of all its clients, and serve may be asked by a crowd
	a.atEnd = append(a.atEnd, func() { db.Close() })
	inner, err := sqlstore.New(db, sqlstore.PostgreSQL)
	if err != nil {
		return nil, err
	}
	return &created{Store: inner, at: shown(address), ready: func(ctx context.Context, _ bool) error { return inner.Create(ctx) }}, nil
}

func (a *app) openSQLite(path string) (brokerauth.Store, error) {
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(path),
		RawQuery: "_pragma=busy_timeout(10000)&_pragma=synchronous(full)&_pragma=secure_delete(on)"}
	db, err := sqlite.Open(u.String())
	if err != nil {
		return nil, fmt.Errorf("sqlite:%s cannot be opened", path)
	}
	a.atEnd = append(a.atEnd, func() { db.Close() })
	inner, err := sqlstore.New(db, sqlstore.SQLite)
	if err != nil {
		return nil, err
	}
	return &created{Store: inner, at: path, ready: func(ctx context.Context, write bool) error {
		if err := ownDatabase(path, write); err != nil {
			return err
		}
		return inner.Create(ctx)
	}}, nil
}

// ownDatabase checks that a SQLite file is this user's alone, as its driver does not. One that is missing is made, if it
// is to be written.
func ownDatabase(path string, write bool) error {
	dir := filepath.Dir(path)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) && write {
		if err := private.MakeDir(dir); err != nil {
			return err
		}
		if err := ownFolder(dir); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return ownDatabase(path, false)
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no plain file: %w", path, fs.ErrPermission)
	}
	return errors.Join(ownFolder(dir), private.Check(path, info))
}

// ownFolder checks that the folder is this user's alone: beside its file SQLite makes others, and trusts those that it finds.
func ownFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return private.Check(dir, info)
}

func (a *app) openRedis(address string) (brokerauth.Store, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	goredis.SetLogger(mute{}) // errors say what it would
	var client goredis.UniversalClient
	switch query := u.Query(); {
	case query.Has("master_name"): // the address is a Sentinel's
		options, err := goredis.ParseFailoverURL(address)
		if err != nil {
			return nil, err
		}
		options.ContextTimeoutEnabled, options.DisableIdentity = true, true
		client = goredis.NewFailoverClient(options)
	case query.Has("addr"): // a Cluster has more than one
		options, err := goredis.ParseClusterURL(address)
		if err != nil {
			return nil, err
		}
		options.ContextTimeoutEnabled, options.DisableIdentity = true, true
		client = goredis.NewClusterClient(options)
	default:
		options, err := goredis.ParseURL(address)
		if err != nil {
			return nil, err
		}
		options.ContextTimeoutEnabled, options.DisableIdentity = true, true
		client = goredis.NewClient(options)
	}
	a.atEnd = append(a.atEnd, func() { client.Close() })
	return redis.New(client, "")
}

// mute is a log that keeps nothing.
type mute struct{}

func (mute) Printf(context.Context, string, ...any) {}

// created is a database whose table is made, or looked at, when it is first used.
type created struct {
	*sqlstore.Store
	ready func(ctx context.Context, write bool) error
	at    string // the file or server, for people
	done  atomic.Bool
}

// prepare lets callers be ready at the same time, which does no harm: in a queue each would wait for a silent server anew,
// and for longer than its context lasts.
func (s *created) prepare(ctx context.Context, write bool) error {
	if s.done.Load() {
		return nil
	}
	err := s.ready(ctx, write)
	if err == nil {
		s.done.Store(true)
	}
	return err
}

// Where names the row and where its table is.
func (s *created) Where(key brokerauth.Key) string { return s.Store.Where(key) + " in " + s.at }

func (s *created) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if err := s.prepare(ctx, false); err != nil {
		return nil, err
	}
	return s.Store.Load(ctx, key)
}

func (s *created) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if err := s.prepare(ctx, new != nil); err != nil {
		if new == nil && errors.Is(err, fs.ErrNotExist) {
			return old == nil, nil // without the file there is nothing to delete
		}
		return false, err
	}
	return s.Store.CompareAndSwap(ctx, key, old, new)
}

func (s *created) Keys(ctx context.Context) ([]brokerauth.Key, error) {
	if err := s.prepare(ctx, false); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	return s.Store.Keys(ctx)
}

func (s *created) SetAside(ctx context.Context, key brokerauth.Key) (string, error) {
	if err := s.prepare(ctx, false); err != nil {
		return "", err
	}
	return s.Store.SetAside(ctx, key)
}
