// Predict asks a model about photographs, one answer each, as they come:
//
//	go run ./predict shop photo.jpg other.jpg
//
// ACCLIMATE_SERVER says where the service listens, ACCLIMATE_TOKEN who asks (docs/security.md).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	acclimate "example.com/you/acclimate/acclimate/v1"
)

func main() {
	if len(os.Args) < 3 {
		fail(errors.New("usage: predict MODEL IMAGE..."))
	}
	target := os.Getenv("ACCLIMATE_SERVER")
	if target == "" {
		target = "127.0.0.1:50051"
	}
	// With TLS: grpc.WithTransportCredentials(credentials.NewTLS(...)).
	connection, err := grpc.Dial(target, grpc.WithInsecure())
	if err != nil {
		fail(err)
	}
	defer connection.Close()
	// Every call has a deadline; a stream that is to last longer is opened again.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if token := os.Getenv("ACCLIMATE_TOKEN"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := acclimate.NewInferenceServiceClient(connection).PredictStream(ctx)
	if err != nil {
		fail(err)
	}
	paths := os.Args[2:]
	go ask(stream, "models/"+os.Args[1], paths)
	for _, path := range paths {
		answer, err := stream.Recv()
		if err != nil {
			fail(err)
		}
		if refusal := answer.GetRefusal(); refusal != nil {
			fmt.Println(path, refusal.Reason, refusal.Message) // it costs only this image
			continue
		}
		found := answer.GetResponse()
		best := found.Predictions[0].Classes[0]
		fmt.Printf("%s %s %.3f %s\n", path, best.Label, best.Probability, found.Version)
	}
}

// Answers come in the order of the images, while later ones are still being sent.
func ask(stream acclimate.InferenceService_PredictStreamClient, model string, paths []string) {
	for _, path := range paths {
		image, err := os.ReadFile(path)
		if err != nil {
			fail(err)
		}
		request := &acclimate.PredictRequest{Model: model, Images: [][]byte{image}, TopK: 1}
		if err := stream.Send(request); err != nil && err != io.EOF {
			fail(err) // of io.EOF, Recv says why
		}
	}
	stream.CloseSend()
}

// fail ends the program with the stable reason of a refusal, and its message.
func fail(err error) {
	reason := "ERROR"
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = info.Reason
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", reason, status.Convert(err).Message())
	os.Exit(1)
}
