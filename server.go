package litestream

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// ErrServerClosed reports a call on a Server that was closed or never opened.
var ErrServerClosed = errors.New("server closed")

// serverParallelism is how many databases a Server closes at a time.
const serverParallelism = 16

// Server is a set of databases with one lifecycle, such as the tenants of a
// platform. All methods are safe for concurrent use.
type Server struct {
	life sync.Mutex // Open and Close, whole

	mu struct {
		sync.Mutex // leaf; guards:
		open       bool
		dbs        map[string]*serverEntry // by resolved path
	}
}

// serverEntry is one database.
type serverEntry struct {
	path string     // as given to Watch, absolute
	busy sync.Mutex // held while the database opens or closes
	db   *DB        // nil until it is open; set with busy and Server.mu held
}

// NewServer returns a Server without databases.
func NewServer() *Server { return &Server{} }

// Open makes the server ready for Watch.
func (s *Server) Open() error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.open {
		return errors.New("open server: already open")
	}
	s.mu.open, s.mu.dbs = true, make(map[string]*serverEntry)
	return nil
}

// Close closes all databases, several at a time, and returns their errors. A
// Watch that is running is waited for. Closing again does nothing. The server
// may be opened again.
func (s *Server) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	entries := s.mu.dbs
	s.mu.open, s.mu.dbs = false, nil
	s.mu.Unlock()

	var g errgroup.Group
	g.SetLimit(serverParallelism)
	errs := make(chan error, len(entries))
	for _, e := range entries {
		g.Go(func() error {
			errs <- e.close()
			return nil
		})
	}
	err := g.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	return err
}

func (e *serverEntry) close() error {
	e.busy.Lock()
	defer e.busy.Unlock()
	if e.db == nil {
		return nil // Watch failed
	}
	return e.db.Close()
}

// DB returns the database at path, or nil if it is not open. Relative paths and
// symbolic links are resolved.
func (s *Server) DB(path string) *DB {
	key := resolvePath(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.mu.dbs[key]; e != nil {
		return e.db
	}
	return nil
}

// DBs returns all open databases, sorted by path. It waits for none that is
// being opened or closed.
func (s *Server) DBs() []*DB {
	s.mu.Lock()
	dbs := make([]*DB, 0, len(s.mu.dbs))
	for _, e := range s.mu.dbs {
		if e.db != nil {
			dbs = append(dbs, e.db)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(dbs, func(a, b *DB) int { return strings.Compare(a.real, b.real) })
	return dbs
}

// Watch adds the database at path: fn constructs it, with its replicas, and
// Watch opens it. A path that is watched already is an error, and fn is not
// called.
func (s *Server) Watch(path string, fn func(path string) (*DB, error)) error {
	if fn == nil {
		return fmt.Errorf("watch %s: no function that constructs the database", path)
	}
	key := resolvePath(path)
	e := &serverEntry{path: absolutePath(path)}
	e.busy.Lock()
	defer e.busy.Unlock()
	if err := s.reserve(key, e); err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	defer func() {
		if e.db == nil { // an error, or a panic of fn
			s.forget(key, e)
		}
	}()
	db, err := fn(path)
	if err == nil {
		err = watchable(db, key)
	}
	if err == nil {
		err = db.Open()
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", path, err)
	}
	s.mu.Lock()
	e.db = db // a Close meanwhile waits for e, and closes it
	s.mu.Unlock()
	return nil
}

func watchable(db *DB, key string) error {
	if db == nil {
		return errors.New("no database was constructed")
	}
	if db.real != key {
		return fmt.Errorf("the database constructed is that of %s", db.path)
	}
	return nil
}

func (s *Server) reserve(key string, e *serverEntry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mu.open {
		return ErrServerClosed
	}
	if s.mu.dbs[key] != nil {
		return errors.New("already watched")
	}
	s.mu.dbs[key] = e
	return nil
}

func (s *Server) forget(key string, e *serverEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.dbs[key] == e {
		delete(s.mu.dbs, key)
	}
}

// Unwatch closes the database at path and removes it. If none is watched there,
// because a symbolic link in the path has another target now, it is the one that
// Watch was given this path for. A path that is not watched is left alone. Until
// Unwatch returns, the path cannot be watched again.
func (s *Server) Unwatch(path string) error {
	key, e := s.find(path)
	if e == nil {
		return nil
	}
	err := e.close()
	s.forget(key, e)
	if err != nil {
		return fmt.Errorf("unwatch %s: %w", path, err)
	}
	return nil
}

func (s *Server) find(path string) (key string, e *serverEntry) {
	key, abs := resolvePath(path), absolutePath(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.mu.dbs[key]; e != nil {
		return key, e
	}
	for key, e := range s.mu.dbs {
		if e.path == abs {
			return key, e
		}
	}
	return "", nil
}

func absolutePath(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
