// Command guestbook is a small web application whose SQLite database is
// streamed to a second directory while it runs, and restored from there at
// boot if it is gone. Run it, then open the address that it prints:
//
//	go run ./examples/guestbook
//
// With -demo it plays the loss of its data directory from start to end, in a
// temporary directory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// stopTimeout bounds the graceful shutdown: the requests in flight and the
// last sync of the replica.
const stopTimeout = 30 * time.Second

type config struct {
	addr    string // TCP address to listen on
	data    string // directory of the database
	replica string // directory that the database is streamed to
	demo    bool
}

func main() {
	cfg, err := parseFlags(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	} else if err != nil {
		os.Exit(2) // the flag package has said what is wrong
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait
	if cfg.demo {
		err = runDemo(ctx, os.Stdout, demoEntries)
	} else {
		err = run(ctx, cfg, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guestbook:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string, output io.Writer) (config, error) {
	var cfg config
	fs := flag.NewFlagSet("guestbook", flag.ContinueOnError)
	fs.SetOutput(output)
	fs.StringVar(&cfg.addr, "addr", "127.0.0.1:8080", "listen on this TCP `address`")
	fs.StringVar(&cfg.data, "data", "guestbook-data", "keep the database in this `directory`")
	fs.StringVar(&cfg.replica, "replica", "guestbook-replica", "stream the database to this `directory`")
	fs.BoolVar(&cfg.demo, "demo", false, "lose the data and get it back, in a temporary directory, and exit")
	if err := fs.Parse(args); err != nil {
		return config{}, err
	}
	if fs.NArg() > 0 {
		err := fmt.Errorf("unexpected argument %q", fs.Arg(0))
		fmt.Fprintln(output, err)
		return config{}, err
	}
	return cfg, nil
}

// run serves the guestbook until ctx ends, and stops it in good order.
func run(ctx context.Context, cfg config, out io.Writer) error {
	s, err := start(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "guestbook: serving %s (data in %s, replica in %s)\n", s.url, cfg.data, cfg.replica)

	var serveErr error
	select {
	case <-ctx.Done():
		fmt.Fprintln(out, "guestbook: stopping")
	case <-s.served:
		serveErr = s.serveErr
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(serveErr, s.stop(stopCtx))
}
