package streamhttp_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"example.com/litestream"
	"example.com/litestream/streamhttp"
)

// The primary serves the databases that it names, to those who know the token.
func ExampleHandler() {
	names := map[string]*litestream.DB{"app": litestream.NewDB("app.db")}
	handler := streamhttp.NewHandler(func(name string) (litestream.StreamClient, bool) {
		db, ok := names[name]
		return db, ok
	})
	handler.Logger = nil
	handler.Authorize = streamhttp.RequireBearerToken("secret")

	mux := http.NewServeMux()
	mux.Handle("/stream", handler)
	server := httptest.NewServer(mux)
	defer server.Close()
	server.Config.RegisterOnShutdown(handler.Close) // ends the streams

	for _, query := range []string{"?db=app", "?db=../../etc/passwd"} {
		req, err := http.NewRequest("GET", server.URL+"/stream"+query, nil)
		if err != nil {
			log.Fatal(err)
		}
		for range 2 {
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				log.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%d %s", resp.StatusCode, body)
			req.Header.Set("Authorization", "Bearer secret")
		}
	}
	// Output:
	// 401 not authorized
	// 503 the database cannot be streamed now
	// 401 not authorized
	// 404 no such database
}

// A follower keeps a live copy of the primary's database.
func ExampleClient() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	// The primary, in its own process.
	path := filepath.Join(dir, "app.db")
	app, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)")
	if err != nil {
		log.Fatal(err)
	}
	defer app.Close()
	if _, err := app.Exec("CREATE TABLE t (s TEXT); INSERT INTO t VALUES ('hello from the primary')"); err != nil {
		log.Fatal(err)
	}
	db := litestream.NewDB(path)
	db.Logger = log.New(io.Discard, "", 0)
	if err := db.Open(); err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	handler := streamhttp.NewHandler(func(name string) (litestream.StreamClient, bool) { return db, name == "app" })
	handler.Authorize = streamhttp.RequireBearerToken("secret")
	server := httptest.NewServer(handler)
	defer server.Close()
	defer handler.Close()

	// The follower, in another.
	client := streamhttp.NewClient(server.URL, "app")
	client.Authorize = streamhttp.BearerToken("secret")
	follower := litestream.NewDB(filepath.Join(dir, "copy.db"))
	follower.Logger = log.New(io.Discard, "", 0)
	follower.StreamClient = client
	if err := follower.Open(); err != nil {
		log.Fatal(err)
	}
	defer follower.Close()
	if err := follower.WaitPos(ctx, db.Pos()); err != nil {
		log.Fatal(err)
	}
	reader, err := sql.Open("sqlite", "file:"+follower.Path()+"?_pragma=query_only(1)")
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Close()
	var s string
	if err := reader.QueryRow("SELECT s FROM t").Scan(&s); err != nil {
		log.Fatal(err)
	}
	fmt.Println(s)
	// Output: hello from the primary
}
