package litestream

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync"

	"modernc.org/sqlite"
)

// connPool opens connections to one database. It keeps none, and no goroutine,
// as a pool of database/sql would: a process may have thousands of databases.
type connPool struct {
	connector driver.Connector

	mu struct {
		sync.Mutex // leaf; guards:
		db         *sql.DB
		closed     bool
	}
}

func newConnPool(path, query string) (*connPool, error) {
	connector, err := sqlite.NewConnector(dsn(path, query))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &connPool{connector: connector}, nil
}

// connect opens a connection.
func (p *connPool) connect(ctx context.Context) (rawConn, error) {
	c, err := p.connector.Connect(ctx)
	if err != nil {
		return rawConn{}, err
	}
	return rawConn{c.(driverConn)}, nil
}

// sqlDB returns a pool of database/sql, nil after Close.
func (p *connPool) sqlDB() *sql.DB {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.db == nil && !p.mu.closed {
		p.mu.db = sql.OpenDB(p.connector)
		p.mu.db.SetMaxIdleConns(0)
	}
	return p.mu.db
}

// Close closes what sqlDB returned. Connections are closed one by one.
func (p *connPool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.closed = true
	if p.mu.db == nil {
		return nil
	}
	err := p.mu.db.Close()
	p.mu.db = nil
	return err
}

// driverConn is what the driver's connections can do.
type driverConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	sqlite.FileControl
}

// rawConn is one connection. It is not safe for concurrent use.
type rawConn struct{ c driverConn }

func namedValues(args []any) []driver.NamedValue {
	a := make([]driver.NamedValue, len(args))
	for i, v := range args {
		a[i] = driver.NamedValue{Ordinal: i + 1, Value: v}
	}
	return a
}

// exec runs a statement. Arguments are int64 or []byte.
func (r rawConn) exec(ctx context.Context, query string, args ...any) error {
	_, err := r.c.ExecContext(ctx, query, namedValues(args))
	return err
}

// each calls fn with every row of a query. What it is given is valid during
// the call alone.
func (r rawConn) each(ctx context.Context, fn func(row []driver.Value) error, query string, args ...any) (err error) {
	rows, err := r.c.QueryContext(ctx, query, namedValues(args))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	row := make([]driver.Value, len(rows.Columns()))
	for {
		if err := rows.Next(row); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := fn(row); err != nil {
			return err
		}
	}
}

// errNoRow reports a query without a result.
var errNoRow = errors.New("no row")

// row reads the first row of a query into int and string variables.
func (r rawConn) row(ctx context.Context, query string, dest ...any) error {
	found := false
	err := r.each(ctx, func(row []driver.Value) error {
		if found {
			return nil
		}
		found = true
		if len(row) != len(dest) {
			return fmt.Errorf("%s: %d columns, want %d", query, len(row), len(dest))
		}
		for i, v := range row {
			if err := assign(dest[i], v); err != nil {
				return fmt.Errorf("%s: column %d: %w", query, i+1, err)
			}
		}
		return nil
	}, query)
	if err == nil && !found {
		return errNoRow
	}
	return err
}

func assign(dest any, v driver.Value) error {
	switch d := dest.(type) {
	case *int:
		if n, ok := v.(int64); ok {
			*d = int(n)
			return nil
		}
	case *string:
		if s, ok := v.(string); ok {
			*d = s
			return nil
		}
	}
	return fmt.Errorf("is a %T, want %T", v, dest)
}
